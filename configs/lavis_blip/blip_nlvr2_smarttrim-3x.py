# bash tools/dist_train.sh configs/lavis_blip/blip_nlvr2_smarttrim-3x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=model_base_nlvr.pth train_dataloader.batch_size=32
_base_ = "blip_nlvr2_smarttrim-2x.py"

model = dict(budget=dict(speedup=3.0))
