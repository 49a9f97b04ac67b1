# ALBEF's recipe for SNLI-VE (arXiv 2107.07651 and its public code): batch 256 (8 GPUs x 32), 5 epochs, 384 px, lr 2e-5. LAVIS's
# own has 10 epochs, weight decay 0.05, a cosine to 0 and no warm-up. Needs LAVIS (docs/lavis.md).
# bash tools/dist_train.sh configs/lavis_albef/albef_snli-ve_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=ALBEF.pth
_base_ = [
    "../_base_/datasets/blip_snli_ve.py",
    "../_base_/schedules/albef.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="TrimmedVLM",
    backbone=dict(type="LavisBackbone", arch="albef_classification", model_type="ve", num_classes=3),
    policy=dict(type="Dense"),
)

max_iters = 10_340
train_cfg = dict(max_iters=max_iters, val_interval=2068)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.5, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", eta_min_ratio=0.05, by_epoch=False, begin=100, T_max=max_iters - 100, end=max_iters),
]
auto_scale_lr = dict(base_batch_size=256)
