# METER's recipe for NLVR2 (arXiv 2111.02387): batch 256 (8 GPUs x 32), 10 epochs, 288 px.
# bash tools/dist_train.sh configs/meter/meter-base_nlvr2_dense.py 8 --amp \
#     --cfg-options model.backbone.init_from.meter=METER_PRETRAINED.ckpt
_base_ = [
    "../_base_/models/meter_base.py",
    "../_base_/datasets/nlvr2.py",
    "../_base_/schedules/meter.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(num_classes=2, head_name="nlvr2_classifier", images_per_text=2, vision=dict(image_size=288)),
)

max_iters = 3370
train_cfg = dict(max_iters=max_iters, val_interval=337)
optim_wrapper = dict(
    optimizer=dict(lr=1e-5),
    paramwise_cfg=dict(custom_keys={"nlvr2_classifier": dict(lr_mult=10.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=max_iters // 10),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=max_iters // 10, end=max_iters),
]
auto_scale_lr = dict(base_batch_size=256)
