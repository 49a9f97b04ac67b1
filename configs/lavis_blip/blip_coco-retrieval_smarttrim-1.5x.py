# bash tools/dist_train.sh configs/lavis_blip/blip_coco-retrieval_smarttrim-1.5x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip_coco_retrieval.pth
_base_ = "blip_coco-retrieval_smarttrim-2x.py"

model = dict(budget=dict(speedup=1.5))
