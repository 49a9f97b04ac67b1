# METER's recipe for SNLI-VE (arXiv 2111.02387): batch 64 (8 GPUs x 8), 5 epochs, 384 px.
# bash tools/dist_train.sh configs/meter/meter-base_snli-ve_dense.py 8 --amp \
#     --cfg-options model.backbone.init_from.meter=METER_PRETRAINED.ckpt
_base_ = [
    "../_base_/models/meter_base.py",
    "../_base_/datasets/snli_ve.py",
    "../_base_/schedules/meter.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(num_classes=3, head_name="snli_classifier", vision=dict(image_size=384)))

max_iters = 41_370
train_cfg = dict(max_iters=max_iters, val_interval=8274)
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(
    optimizer=dict(lr=2e-6),
    paramwise_cfg=dict(custom_keys={"snli_classifier": dict(lr_mult=10.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=max_iters // 10),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=max_iters // 10, end=max_iters),
]
auto_scale_lr = dict(base_batch_size=64)
