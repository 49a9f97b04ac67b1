# DeiT-S/16 at 224 px with SmartTrim at half the multiply-adds; tokens are scored by themselves and by the class token.
# From mmpretrain's public file:
# bash tools/dist_train.sh configs/vit/deit-small_imagenet_smarttrim-2x.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=128 \
#     model.backbone.checkpoint=deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth
_base_ = "deit-small_imagenet_dense.py"

model = dict(
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]
