# mmpretrain's fine-tuned model with SmartTrim at half the multiply-adds of a training; 20 epochs are our choice. A test writes
# the coordinates one by one, so that the decoder, which is not trimmed but reads what is left, has a larger share.
# bash tools/dist_train.sh configs/blip/blip-base_refcoco_smarttrim-2x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip-base_8xb16_refcoco_20230508-d2d10f4c.pth train_dataloader.batch_size=16
_base_ = "blip-base_refcoco_dense.py"

model = dict(
    backbone=dict(text_first=True),
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]

max_iters = 18_840
train_cfg = dict(max_iters=max_iters, val_interval=942)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
