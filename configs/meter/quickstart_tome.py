# Similar image tokens merge in every layer of the image encoder. Without training, on the dense checkpoint:
# python tools/calibrate.py configs/meter/quickstart_tome.py work_dirs/quickstart_dense/iter_1700.pth --speedup 2.0 \
#     --out work_dirs/quickstart_tome/start.pth
# python tools/test.py configs/meter/quickstart_tome.py work_dirs/quickstart_tome/start.pth
# Or fine-tuned with merging, from there:
# python tools/train.py configs/meter/quickstart_tome.py --cfg-options load_from=work_dirs/quickstart_tome/start.pth
_base_ = "quickstart_smarttrim.py"

model = dict(policy=dict(_delete_=True, type="ToMe", streams=["image"], layers=dict(text=[], fusion=[])), budget=None)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.4)]
