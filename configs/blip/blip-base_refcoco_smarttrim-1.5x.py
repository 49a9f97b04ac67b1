# bash tools/dist_train.sh configs/blip/blip-base_refcoco_smarttrim-1.5x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip-base_8xb16_refcoco_20230508-d2d10f4c.pth train_dataloader.batch_size=16
_base_ = "blip-base_refcoco_smarttrim-2x.py"

model = dict(budget=dict(speedup=1.5))
