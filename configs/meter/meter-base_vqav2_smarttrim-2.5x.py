# bash tools/dist_train.sh configs/meter/meter-base_vqav2_smarttrim-2.5x.py 8 --amp \
#     --cfg-options load_from=work_dirs/meter-base_vqav2_dense/CHECKPOINT.pth
_base_ = "meter-base_vqav2_smarttrim-2x.py"

model = dict(budget=dict(speedup=2.5))
