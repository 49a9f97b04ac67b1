# ImageNet-1k as mmpretrain tests its DeiT: 224 px, cut from the middle of 256, bicubic. Training crops and flips alone.
_base_ = "imagenet.py"

image_size = 224
_resize = dict(backend="pillow", interpolation="bicubic")
train_pipeline = [
    _base_.load,
    dict(type="mmpretrain.RandomResizedCrop", scale=image_size, **_resize),
    _base_.flip,
    _base_.pack,
]
test_pipeline = [
    _base_.load,
    dict(type="mmpretrain.ResizeEdge", scale=256, edge="short", **_resize),
    dict(type="mmpretrain.CenterCrop", crop_size=image_size),
    _base_.pack,
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
