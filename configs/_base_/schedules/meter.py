# METER's fine-tuning recipe for VQAv2 (arXiv 2111.02387): AdamW, batch 512, head x50 and fusion x5 the learning rate (with its
# transforms and poolers, without the token types), 10 % warm-up, linear decay to 0; no weight decay of biases and norms.
# Gradients are clipped: our choice.
max_iters = 10_000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=1000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="NamedRates",
    optimizer=dict(type="AdamW", lr=5e-6, betas=(0.9, 0.98), weight_decay=0.01),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            "cross_modal": dict(lr_mult=5.0),
            "vqa_classifier": dict(lr_mult=50.0),
            "policy.": dict(lr_mult=50.0, decay_mult=0.0),
        },
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=max_iters // 10),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=max_iters // 10, end=max_iters),
]
auto_scale_lr = dict(base_batch_size=512)
