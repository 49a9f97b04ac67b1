# ALBEF fine-tuned on the task with SmartTrim at half the multiply-adds of a training; a test, which ranks more answers, saves
# less (docs/lavis.md). From LAVIS's fine-tuned file:
# bash tools/dist_train.sh configs/lavis_albef/albef_vqav2_smarttrim-2x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=albef_vqav2_lavis.pt
_base_ = "albef_vqav2_dense.py"

model = dict(
    backbone=dict(text_first=True),
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]
