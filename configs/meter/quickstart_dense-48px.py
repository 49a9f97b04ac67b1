# python tools/train.py configs/meter/quickstart_dense-48px.py
# The dense model at three quarters of the resolution, for 1.8 times fewer multiply-adds (35.94 M in place of 64.07 M at nine
# text tokens, tools/cost.py). It is trained for as many iterations as the dense model of 64 px and the fine-tuning of SmartTrim
# together, with which configs/compare/easy-vqa_resolution.py compares it.
_base_ = "quickstart_dense.py"

model = dict(backbone=dict(vision=dict(image_size=48)))

pipeline = [_base_.pipeline[0], dict(type="ResizeAndCrop"), *_base_.pipeline[1:]]
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(image_size=48, pipeline=pipeline))

max_iters = 2150
train_cfg = dict(max_iters=max_iters, val_interval=1075)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, T_max=max_iters - 100, eta_min=0.0),
]
