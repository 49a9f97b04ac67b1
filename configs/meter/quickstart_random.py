# The same fine-tuning with tokens dropped at random. Calibrate the dense checkpoint first, to find the keep ratio:
# python tools/calibrate.py configs/meter/quickstart_random.py work_dirs/quickstart_dense/iter_1700.pth --speedup 2.0 \
#     --out work_dirs/quickstart_random/start.pth
# python tools/train.py configs/meter/quickstart_random.py --cfg-options load_from=work_dirs/quickstart_random/start.pth
_base_ = "quickstart_smarttrim.py"

model = dict(
    policy=dict(_delete_=True, type="Random", streams=["image"], layers=dict(image=[0, 2], text=[], fusion=[0])), budget=None
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.4)]
