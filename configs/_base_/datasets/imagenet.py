# ImageNet-1k in data/imagenet (train/, val/, a folder a class), by mmpretrain's own data set, pipeline and metric, as its ViT
# at 384 px prepares it. val stands for test too, as test has no public labels.
image_size = 384
load = dict(type="LoadImageFromFile")
flip = dict(type="mmpretrain.RandomFlip", prob=0.5, direction="horizontal")
pack = dict(type="mmpretrain.PackInputs")
train_pipeline = [load, dict(type="mmpretrain.RandomResizedCrop", scale=image_size, backend="pillow"), flip, pack]
test_pipeline = [
    load,
    dict(type="mmpretrain.ResizeEdge", scale=image_size, edge="short", backend="pillow"),
    dict(type="mmpretrain.CenterCrop", crop_size=image_size),
    pack,
]

common = dict(type="mmpretrain.ImageNet", data_root="data/imagenet")
loader = dict(num_workers=5, persistent_workers=True, collate_fn=dict(type="pseudo_collate"))
train_dataloader = dict(
    **loader,
    batch_size=64,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(**common, split="train", pipeline=train_pipeline),
)
val_dataloader = test_dataloader = dict(
    **loader,
    batch_size=64,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**common, split="val", pipeline=test_pipeline),
)
val_evaluator = test_evaluator = [dict(type="mmpretrain.Accuracy", topk=(1, 5)), dict(type="ComputeReport")]

data_preprocessor = dict(
    type="ImagePreprocessor",
    num_classes=1000,
    mean=[127.5, 127.5, 127.5],
    std=[127.5, 127.5, 127.5],
    to_rgb=True,
)
