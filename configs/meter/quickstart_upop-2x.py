# Search which heads and FFN units to keep, then slice the others off; the same config tests the sliced checkpoint:
# python tools/train.py configs/meter/quickstart_upop-2x.py \
#     --cfg-options load_from=work_dirs/quickstart_dense/iter_1700.pth
# python tools/slice.py configs/meter/quickstart_upop-2x.py work_dirs/quickstart_upop-2x/iter_450.pth \
#     --out work_dirs/quickstart_upop-2x/sliced.pth
# python tools/test.py configs/meter/quickstart_upop-2x.py work_dirs/quickstart_upop-2x/sliced.pth
_base_ = "quickstart_smarttrim.py"

# The teacher is frozen: the dense pass of the weights in training would lose what the search takes away.
model = dict(
    policy=dict(_delete_=True, type="UPop"),
    distillation=dict(frozen_teacher="work_dirs/quickstart_dense/iter_1700.pth"),
    budget=dict(_delete_=True, type="SlicingBudget", speedup=2.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]
