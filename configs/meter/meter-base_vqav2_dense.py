# METER's recipe for VQAv2 (arXiv 2111.02387): batch 512 (8 GPUs x 32 x 2), 10 epochs of train + val, 576 px.
# bash tools/dist_train.sh configs/meter/meter-base_vqav2_dense.py 8 --amp \
#     --cfg-options model.backbone.init_from.meter=METER_PRETRAINED.ckpt
_base_ = [
    "../_base_/models/meter_base.py",
    "../_base_/datasets/vqav2.py",
    "../_base_/schedules/meter.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(num_classes=3129, vision=dict(image_size=576)),
    task_loss=dict(type="SoftTargetBCE"),
)

max_iters = 25_700
train_cfg = dict(max_iters=max_iters, val_interval=2570)
optim_wrapper = dict(accumulative_counts=2)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=max_iters // 10),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=max_iters // 10, end=max_iters),
]
auto_scale_lr = dict(base_batch_size=256)
