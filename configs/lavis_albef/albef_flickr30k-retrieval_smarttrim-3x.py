# bash tools/dist_train.sh configs/lavis_albef/albef_flickr30k-retrieval_smarttrim-3x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=albef_flickr_retrieval_lavis.pt
_base_ = "albef_flickr30k-retrieval_smarttrim-2x.py"

model = dict(budget=dict(speedup=3.0))
