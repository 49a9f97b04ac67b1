# The same fine-tuning with DynamicViT at the same places. Calibrate first, to find the keep ratio, which its loss aims at:
# python tools/calibrate.py configs/meter/quickstart_dynamicvit.py work_dirs/quickstart_dense/iter_1700.pth --speedup 2.0 \
#     --out work_dirs/quickstart_dynamicvit/start.pth
# python tools/train.py configs/meter/quickstart_dynamicvit.py \
#     --cfg-options load_from=work_dirs/quickstart_dynamicvit/start.pth
_base_ = "quickstart_smarttrim.py"

# The paper's weight of the KL, whose teacher is the dense pass of the weights in training.
model = dict(
    policy=dict(_delete_=True, type="DynamicViT", streams=["image"], layers=dict(image=[0, 2], text=[], fusion=[0])),
    distillation=dict(weight=0.5),
    budget=None,
)
# The noise stays: inference takes the best tokens, it does not threshold, so that there is nothing to anneal to.
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.4)]
