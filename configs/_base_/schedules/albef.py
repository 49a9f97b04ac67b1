# ALBEF's way of fine-tuning (arXiv 2107.07651 and its public code): AdamW, weight decay 0.02 (as in LAVIS not on norms and
# biases), a warm-up of 100 iterations from 1e-5 to 2e-5, and a cosine to 1e-6, here by iteration. Without ALBEF's momentum
# distillation. Trimmers learn at ten times the rate, and gradients are
# clipped: our choices.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=6740, val_interval=674)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-5, weight_decay=0.02),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        bypass_duplicate=True,  # decoders' heads are their embeddings; NLVR2's layers share cross-attentions
        custom_keys={"policy.": dict(lr_mult=10.0, decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.5, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", eta_min_ratio=0.05, by_epoch=False, begin=100, T_max=6640, end=6740),
]
