# python tools/train.py configs/meter/quickstart_dense.py
_base_ = [
    "../_base_/models/meter_tiny.py",
    "../_base_/datasets/easy_vqa.py",
    "../_base_/schedules/quickstart.py",
    "../_base_/default_runtime.py",
]

default_hooks = dict(logger=dict(interval=10))  # a line every few seconds
