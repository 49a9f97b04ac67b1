# EViT: fine-tuned with what the class token attends to least fused into one token. Calibrate the dense checkpoint first, to
# find the keep ratio:
# python tools/calibrate.py configs/meter/quickstart_evit.py work_dirs/quickstart_dense/iter_1700.pth --speedup 2.0 \
#     --out work_dirs/quickstart_evit/start.pth
# python tools/train.py configs/meter/quickstart_evit.py --cfg-options load_from=work_dirs/quickstart_evit/start.pth
_base_ = "quickstart_random.py"

# a layer sooner than at a quarter of the depth: of four layers, one that runs whole costs much
model = dict(policy=dict(_delete_=True, type="EViT", layers=dict(image=[0, 1, 2])))
custom_hooks = [dict(type="CurriculumHook", schedule="cosine", end=0.4)]
