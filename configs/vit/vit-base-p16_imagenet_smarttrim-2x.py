# ViT-B/16 at 384 px with SmartTrim at half the multiply-adds; tokens are scored by themselves and by the class token.
# From mmpretrain's public file:
# bash tools/dist_train.sh configs/vit/vit-base-p16_imagenet_smarttrim-2x.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=128 \
#     model.backbone.checkpoint=vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b.pth
_base_ = "vit-base-p16_imagenet_dense.py"

model = dict(
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]
