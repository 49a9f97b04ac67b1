# python tools/train.py configs/meter/quickstart_ltp.py \
#     --cfg-options load_from=work_dirs/quickstart_dense/iter_1700.pth
_base_ = "quickstart_smarttrim.py"

# The same places as SmartTrim's, and the same loss on multiply-adds instead of the policy's own penalty. An image has 65
# tokens, so that attention received is about 0.015 each. Thresholds are learned until the curriculum ends, then frozen.
model = dict(
    policy=dict(
        _delete_=True,
        type="LTP",
        threshold=0.015,
        streams=["image"],
        layers=dict(image=[0, 2], text=[], fusion=[0]),
        temperature=0.003,
        mask_weight=0.0,
        hard_from=1.0,
    ),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]
