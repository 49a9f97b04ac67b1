# DeiT-S/16 at 224 px with SmartTrim at a third of the multiply-adds, from mmpretrain's public file:
# bash tools/dist_train.sh configs/vit/deit-small_imagenet_smarttrim-3x.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=128 \
#     model.backbone.checkpoint=deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth
_base_ = "deit-small_imagenet_smarttrim-2x.py"

model = dict(budget=dict(speedup=3.0))
