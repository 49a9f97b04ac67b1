# python tools/train.py configs/meter/mosaic_smarttrim.py \
#     --cfg-options load_from=work_dirs/mosaic_dense/iter_6000.pth
_base_ = "mosaic_dense.py"

# The question runs first and guides the trimmers from the first image layer on, where a patch is its colours and its place.
# Each question then has an image encoding of its own. The shapes of all filled cells touch a sixth of the patches on average,
# that of the asked cell 1 in 30: at 5x (tools/cost.py: a tenth of the patches kept) it pays to know the question.
model = dict(
    backbone=dict(text_first=True),
    policy=dict(
        type="SmartTrim",
        streams=["image"],
        token_layers=dict(image=[0, 1, 2, 3], text=[], fusion=[0, 1]),
        head_layers=dict(image=[], text=[], fusion=[]),
    ),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=5.0, weight=10.0),
)
custom_hooks = [
    dict(type="CurriculumHook", schedule="linear", end=0.5),
    dict(type="NoiseHook", start=1.0, end=0.0, until=0.85),
]

train_dataloader = dict(batch_size=32, dataset=dict(questions_per_image=1))
max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=500)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(custom_keys={"policy.": dict(lr_mult=5.0, decay_mult=0.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=30),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=30, T_max=max_iters - 30, eta_min=0.0),
]
auto_scale_lr = dict(base_batch_size=32)
