# Fine-tuning a classifier that is trained already, to be trimmed: 30 epochs of ImageNet-1k at batch 1024, AdamW, a cosine to 0.
# Trimmers learn at ten times the rate. These are our choices: mmpretrain has recipes from scratch, of 300 epochs.
max_iters = 37_530
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=1251)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-5, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            "policy.": dict(lr_mult=10.0, decay_mult=0.0),
            ".cls_token": dict(decay_mult=0.0),
            ".pos_embed": dict(decay_mult=0.0),
        },
    ),
)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
auto_scale_lr = dict(base_batch_size=1024)
