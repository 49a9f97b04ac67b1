# ALBEF fine-tuned on the task with SmartTrim at half the multiply-adds of a training, from LAVIS's fine-tuned file:
# bash tools/dist_train.sh configs/lavis_albef/albef_coco-retrieval_smarttrim-2x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=albef_coco_retrieval_lavis.pt
_base_ = "albef_coco-retrieval_dense.py"

model = dict(
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="RampUpHook", end=2 / 5), dict(type="CurriculumHook", schedule="linear", end=0.7)]
