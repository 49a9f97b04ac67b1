# As blip-base_flickr30k-caption_dense.py with SmartTrim at half the multiply-adds of a training:
# bash tools/dist_train.sh configs/blip/blip-base_flickr30k-caption_smarttrim-2x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip-base_3rdparty_coco-caption_20230419-a5b71af3.pth
_base_ = "blip-base_flickr30k-caption_dense.py"

model = dict(
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]
