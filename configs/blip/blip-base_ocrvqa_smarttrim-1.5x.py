# bash tools/dist_train.sh configs/blip/blip-base_ocrvqa_smarttrim-1.5x.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=32 \
#     model.backbone.checkpoint=blip-base_3rdparty-capflit_vqa_20230505-81488941.pth
_base_ = "blip-base_ocrvqa_smarttrim-2x.py"

model = dict(budget=dict(speedup=1.5))
