# BLIP fine-tuned on the task with SmartTrim at half the multiply-adds of a training, from mmpretrain's fine-tuned file:
# bash tools/dist_train.sh configs/blip/blip-base_coco-retrieval_smarttrim-2x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip-base_3rdparty_coco-retrieval_20230419-a1804d2c.pth
_base_ = "blip-base_coco-retrieval_dense.py"

model = dict(
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="RampUpHook", end=2 / 6), dict(type="CurriculumHook", schedule="linear", end=0.7)]
