# Similar image tokens merge in every layer of the image encoder, those first that the question needs least: it is read first.
# Calibrate the dense checkpoint first, to find how many:
# python tools/calibrate.py configs/meter/quickstart_crossget.py work_dirs/quickstart_dense/iter_1700.pth --speedup 2.0 \
#     --out work_dirs/quickstart_crossget/start.pth
# python tools/train.py configs/meter/quickstart_crossget.py --cfg-options load_from=work_dirs/quickstart_crossget/start.pth
_base_ = "quickstart_smarttrim.py"

model = dict(
    backbone=dict(text_first=True),
    policy=dict(_delete_=True, type="CrossGET", streams=["image"], layers=dict(text=[], fusion=[])),
    budget=None,
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.4)]
