# python tools/train.py configs/meter/quickstart_adavit.py \
#     --cfg-options load_from=work_dirs/quickstart_dense/iter_1700.pth
_base_ = "quickstart_smarttrim.py"

# The same places as SmartTrim's, and the same loss on multiply-adds instead of the policy's own on shares. Sub-layers may be
# skipped where heads may.
model = dict(
    policy=dict(
        _delete_=True,
        type="AdaViT",
        streams=["image"],
        token_layers=dict(image=[0, 2], text=[], fusion=[0]),
        head_layers=dict(image=[2], text=[], fusion=[]),
        part_layers=dict(image=[2], text=[], fusion=[]),
        usage_weight=0.0,
    ),
)
