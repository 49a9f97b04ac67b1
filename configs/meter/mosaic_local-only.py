# The same fine-tuning by trimmers that see each token alone, and so cannot read the question before the fusion layers.
# python tools/train.py configs/meter/mosaic_local-only.py \
#     --cfg-options load_from=work_dirs/mosaic_dense/iter_6000.pth
_base_ = "mosaic_smarttrim.py"

model = dict(policy=dict(token_trimmer=dict(type="TokenTrimmer", scores=("local",))))
