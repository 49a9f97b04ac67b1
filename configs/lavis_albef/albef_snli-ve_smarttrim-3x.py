# bash tools/dist_train.sh configs/lavis_albef/albef_snli-ve_smarttrim-3x.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=albef_snli_ve_lavis.pt
_base_ = "albef_snli-ve_smarttrim-2x.py"

model = dict(budget=dict(speedup=3.0))
