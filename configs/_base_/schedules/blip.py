# BLIP's way of fine-tuning (arXiv 2201.12086): AdamW, weight decay 0.05 (as in LAVIS not on norms and biases), and a cosine to
# 0, here by iteration. Trimmers learn at ten times the rate, and gradients are
# clipped: our choices.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=5060, val_interval=1012)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=3e-5, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        bypass_duplicate=True,  # decoders' heads are their embeddings; ALBEF's NLVR2 shares cross-attentions
        custom_keys={"policy.": dict(lr_mult=10.0, decay_mult=0.0)},
    ),
)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=5060, eta_min=0.0, by_epoch=False, end=5060)]
