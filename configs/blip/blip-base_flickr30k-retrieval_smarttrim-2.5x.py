# bash tools/dist_train.sh configs/blip/blip-base_flickr30k-retrieval_smarttrim-2.5x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip-base_3rdparty_coco-retrieval_20230419-a1804d2c.pth
_base_ = "blip-base_flickr30k-retrieval_smarttrim-2x.py"

model = dict(budget=dict(speedup=2.5))
