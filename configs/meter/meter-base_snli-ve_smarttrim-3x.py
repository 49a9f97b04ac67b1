# bash tools/dist_train.sh configs/meter/meter-base_snli-ve_smarttrim-3x.py 8 --amp \
#     --cfg-options load_from=work_dirs/meter-base_snli-ve_dense/CHECKPOINT.pth
_base_ = "meter-base_snli-ve_smarttrim-2x.py"

model = dict(budget=dict(speedup=3.0))
