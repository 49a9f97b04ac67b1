# bash tools/dist_train.sh configs/lavis_blip/blip_coco-caption_smarttrim-3x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=model_base_caption_capfilt_large.pth
_base_ = "blip_coco-caption_smarttrim-2x.py"

model = dict(budget=dict(speedup=3.0))
