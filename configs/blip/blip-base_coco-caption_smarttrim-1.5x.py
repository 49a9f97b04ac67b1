# bash tools/dist_train.sh configs/blip/blip-base_coco-caption_smarttrim-1.5x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip-base_3rdparty_coco-caption_20230419-a5b71af3.pth
_base_ = "blip-base_coco-caption_smarttrim-2x.py"

model = dict(budget=dict(speedup=1.5))
