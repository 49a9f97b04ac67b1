# Iterations of 32 images with four questions each; learning rate by warm-up and cosine.
max_iters = 1700
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=850)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, T_max=max_iters - 100, eta_min=0.0),
]
auto_scale_lr = dict(base_batch_size=32)
