# python tools/train.py configs/meter/quickstart_ftkd-2x.py
# The static baseline: every second layer of the dense model, fine-tuned with knowledge distillation (FTKD) from it. Of another
# run: --cfg-options model.distillation.frozen_teacher=CHECKPOINT. The student's dense pass takes 36.89 M multiply-adds, the
# teacher's 65.43 M (tools/cost.py on either config): 1.77 times fewer, and whole layers come no nearer to 2. Reports of this
# model call its own 36.89 M dense, so that it is compared with trimmed models by multiply-adds, not by their speed-up.
_base_ = "quickstart_dense.py"

model = dict(
    backbone=dict(vision=dict(layers=2), text=dict(num_hidden_layers=1)),
    distillation=dict(
        type="SelfDistillation",
        frozen_teacher="work_dirs/quickstart_dense/iter_1700.pth",
        teacher_backbone={{_base_.model.backbone}},
    ),
    init_layers={"vit_model.visual.transformer.resblocks": [0, 2], "text_transformer.encoder.layer": [0]},
)

# as long, and at the same rate, as SmartTrim trains on from the same dense model
max_iters = 450
train_cfg = dict(max_iters=max_iters, val_interval=225)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=30),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=30, T_max=max_iters - 30, eta_min=0.0),
]
