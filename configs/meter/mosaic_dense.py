# python tools/train.py configs/meter/mosaic_dense.py
_base_ = [
    "../_base_/models/meter_tiny_192px.py",
    "../_base_/datasets/mosaic_vqa.py",
    "../_base_/schedules/quickstart.py",
    "../_base_/default_runtime.py",
]

# Eight questions of each of eight mosaics: their pictures take most of the compute, and are encoded once.
train_dataloader = dict(batch_size=8, dataset=dict(questions_per_mosaic=8))
max_iters = 6000
train_cfg = dict(max_iters=max_iters, val_interval=1500)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, T_max=max_iters - 100, eta_min=0.0),
]
auto_scale_lr = dict(base_batch_size=8)
