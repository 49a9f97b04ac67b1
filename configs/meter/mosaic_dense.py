# python tools/train.py configs/meter/mosaic_dense.py
_base_ = [
    "../_base_/models/meter_tiny_192px.py",
    "../_base_/datasets/mosaic_vqa.py",
    "../_base_/schedules/quickstart.py",
    "../_base_/default_runtime.py",
]

default_hooks = dict(logger=dict(interval=10))
