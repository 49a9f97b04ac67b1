# Image tokens that little attention is paid to fuse into one, in every layer, as many as each image has. Without training, on
# the dense checkpoint:
# python tools/calibrate.py configs/meter/quickstart_madtp.py work_dirs/quickstart_dense/iter_1700.pth --speedup 2.0 \
#     --out work_dirs/quickstart_madtp/start.pth
# python tools/test.py configs/meter/quickstart_madtp.py work_dirs/quickstart_madtp/start.pth
# Or fine-tuned with it, from there, and then calibrated again, as training moves what attention is paid to:
# python tools/train.py configs/meter/quickstart_madtp.py --cfg-options load_from=work_dirs/quickstart_madtp/start.pth
_base_ = "quickstart_smarttrim.py"

model = dict(policy=dict(_delete_=True, type="MADTP", streams=["image"], layers=dict(text=[])), budget=None)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.4)]
