# python tools/train.py configs/meter/quickstart_smarttrim.py \
#     --cfg-options load_from=work_dirs/quickstart_dense/iter_2000.pth
_base_ = "quickstart_dense.py"

model = dict(
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.05, weight=20.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.5)]

max_iters = 800
train_cfg = dict(max_iters=max_iters, val_interval=400)
optim_wrapper = dict(
    optimizer=dict(lr=3e-4),
    paramwise_cfg=dict(custom_keys={"policy.": dict(lr_mult=5.0, decay_mult=0.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=50),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=50, T_max=max_iters - 50, eta_min=0.0),
]
