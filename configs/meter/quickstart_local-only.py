# SmartTrim whose trimmers see each token alone: no guide token, neither of the own stream nor of the other.
# python tools/train.py configs/meter/quickstart_local-only.py \
#     --cfg-options load_from=work_dirs/quickstart_dense/iter_1700.pth
_base_ = "quickstart_smarttrim.py"

model = dict(policy=dict(token_trimmer=dict(type="TokenTrimmer", scores=("local",))))
