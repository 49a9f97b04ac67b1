# ALBEF fine-tuned on the task with SmartTrim at half its multiply-adds, from LAVIS's fine-tuned file:
# bash tools/dist_train.sh configs/lavis_albef/albef_snli-ve_smarttrim-2x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=albef_snli_ve_lavis.pt
_base_ = "albef_snli-ve_dense.py"

model = dict(
    backbone=dict(text_first=True),
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]
