# bash tools/dist_train.sh configs/lavis_albef/albef_coco-retrieval_smarttrim-2.5x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=albef_coco_retrieval_lavis.pt
_base_ = "albef_coco-retrieval_smarttrim-2x.py"

model = dict(budget=dict(speedup=2.5))
