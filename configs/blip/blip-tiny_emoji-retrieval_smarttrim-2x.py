# python tools/train.py configs/blip/blip-tiny_emoji-retrieval_smarttrim-2x.py \
#     --cfg-options load_from=work_dirs/blip-tiny_emoji-retrieval_dense/iter_2000.pth
_base_ = "blip-tiny_emoji-retrieval_dense.py"

model = dict(
    policy=dict(
        type="SmartTrim",
        streams=["image"],
        token_layers=dict(image=[0, 2], text=[], fusion=[0]),
        head_layers=dict(image=[2], text=[], fusion=[]),
    ),
    distillation=dict(type="SelfDistillation", weight=1.0),
    # a step has three fusions for one image, a test about 20, of which less can be trimmed
    budget=dict(type="ComputeBudget", speedup=2.25, weight=10.0),
)
custom_hooks = [
    dict(type="CurriculumHook", schedule="linear", end=0.4),
    dict(type="NoiseHook", start=1.0, end=0.0, until=0.85),
]

max_iters = 600
train_cfg = dict(max_iters=max_iters, val_interval=300)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(custom_keys={"policy.": dict(lr_mult=5.0, decay_mult=0.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=30),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=30, T_max=max_iters - 30, eta_min=0.0),
]
