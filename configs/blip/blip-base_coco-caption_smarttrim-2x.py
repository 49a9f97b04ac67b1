# BLIP fine-tuned on the task with SmartTrim at half the multiply-adds of a training; a test runs the decoder for every word
# anew. From mmpretrain's fine-tuned file:
# bash tools/dist_train.sh configs/blip/blip-base_coco-caption_smarttrim-2x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip-base_3rdparty_coco-caption_20230419-a5b71af3.pth
_base_ = "blip-base_coco-caption_dense.py"

model = dict(
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]
