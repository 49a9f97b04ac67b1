# METER fine-tuned on the task with SmartTrim at half its multiply-adds, from a checkpoint of the dense config:
# bash tools/dist_train.sh configs/meter/meter-base_coco-retrieval_smarttrim-2x.py 8 --amp \
#     --cfg-options load_from=work_dirs/meter-base_coco-retrieval_dense/CHECKPOINT.pth
_base_ = "meter-base_coco-retrieval_dense.py"

model = dict(
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]
