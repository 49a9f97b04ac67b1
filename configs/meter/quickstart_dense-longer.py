# The dense model, trained on exactly as SmartTrim is fine-tuned: what longer training alone is worth.
# python tools/train.py configs/meter/quickstart_dense-longer.py \
#     --cfg-options load_from=work_dirs/quickstart_dense/iter_1700.pth
_base_ = "quickstart_smarttrim.py"

model = dict(policy=dict(_delete_=True, type="Dense"), distillation=None, budget=None)
custom_hooks = []
