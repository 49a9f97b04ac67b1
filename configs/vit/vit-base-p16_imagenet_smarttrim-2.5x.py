# ViT-B/16 at 384 px with SmartTrim at two fifths of the multiply-adds, from mmpretrain's public file:
# bash tools/dist_train.sh configs/vit/vit-base-p16_imagenet_smarttrim-2.5x.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=128 \
#     model.backbone.checkpoint=vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b.pth
_base_ = "vit-base-p16_imagenet_smarttrim-2x.py"

model = dict(budget=dict(speedup=2.5))
