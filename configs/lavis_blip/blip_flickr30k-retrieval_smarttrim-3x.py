# bash tools/dist_train.sh configs/lavis_blip/blip_flickr30k-retrieval_smarttrim-3x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip_flickr_retrieval.pth
_base_ = "blip_flickr30k-retrieval_smarttrim-2x.py"

model = dict(budget=dict(speedup=3.0))
