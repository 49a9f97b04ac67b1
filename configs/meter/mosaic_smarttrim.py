# python tools/train.py configs/meter/mosaic_smarttrim.py \
#     --cfg-options load_from=work_dirs/mosaic_dense/iter_2400.pth
_base_ = "mosaic_dense.py"

model = dict(
    backbone=dict(text_first=True),
    policy=dict(
        type="SmartTrim",
        streams=["image"],
        token_layers=dict(image=[0, 1, 2, 3], text=[], fusion=[0, 1]),
        head_layers=dict(image=[], text=[], fusion=[]),
    ),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=3.0, weight=10.0),
)
