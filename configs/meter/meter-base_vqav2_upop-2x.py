# METER sliced to half its multiply-adds on the task, from a checkpoint of the dense config, which also teaches: the dense pass
# of the weights in training would lose what the search takes away.
# bash tools/dist_train.sh configs/meter/meter-base_vqav2_upop-2x.py 8 \
#     --cfg-options load_from=work_dirs/meter-base_vqav2_dense/CHECKPOINT.pth \
#     model.distillation.frozen_teacher=work_dirs/meter-base_vqav2_dense/CHECKPOINT.pth
# python tools/slice.py configs/meter/meter-base_vqav2_upop-2x.py work_dirs/meter-base_vqav2_upop-2x/CHECKPOINT.pth \
#     --out work_dirs/meter-base_vqav2_upop-2x/sliced.pth
_base_ = "meter-base_vqav2_dense.py"

model = dict(
    policy=dict(type="UPop"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="SlicingBudget", speedup=2.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]
