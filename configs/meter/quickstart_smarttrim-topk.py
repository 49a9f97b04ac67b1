# SmartTrim's token trimmers with as many tokens kept of every input. Calibrate the dense checkpoint first, to find the keep
# ratio:
# python tools/calibrate.py configs/meter/quickstart_smarttrim-topk.py work_dirs/quickstart_dense/iter_1700.pth --speedup 2.0 \
#     --out work_dirs/quickstart_smarttrim-topk/start.pth
# python tools/train.py configs/meter/quickstart_smarttrim-topk.py \
#     --cfg-options load_from=work_dirs/quickstart_smarttrim-topk/start.pth
_base_ = "quickstart_smarttrim.py"

model = dict(
    policy=dict(_delete_=True, type="SmartTrimTopK", streams=["image"], token_layers=dict(image=[0, 2], text=[], fusion=[0])),
    budget=None,
)
