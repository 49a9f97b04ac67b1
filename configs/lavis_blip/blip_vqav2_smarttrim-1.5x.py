# bash tools/dist_train.sh configs/lavis_blip/blip_vqav2_smarttrim-1.5x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=model_base_vqa_capfilt_large.pth train_dataloader.batch_size=32
_base_ = "blip_vqav2_smarttrim-2x.py"

model = dict(budget=dict(speedup=1.5))
