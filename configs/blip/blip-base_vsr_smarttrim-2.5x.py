# bash tools/dist_train.sh configs/blip/blip-base_vsr_smarttrim-2.5x.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=32 \
#     model.backbone.checkpoint=blip-base_3rdparty-capflit_vqa_20230505-81488941.pth
_base_ = "blip-base_vsr_smarttrim-2x.py"

model = dict(budget=dict(speedup=2.5))
