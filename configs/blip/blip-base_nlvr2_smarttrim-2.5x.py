# bash tools/dist_train.sh configs/blip/blip-base_nlvr2_smarttrim-2.5x.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=32 \
#     model.backbone.checkpoint=blip-base_3rdparty_nlvr_20230427-3b14d33f.pth
_base_ = "blip-base_nlvr2_smarttrim-2x.py"

model = dict(budget=dict(speedup=2.5))
