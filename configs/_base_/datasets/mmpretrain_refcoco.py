# RefCOCO by mmpretrain's class: a phrase and the box that it means (docs/mmpretrain_data.md). Boxes are moved with the image by
# mmcv's Resize and RandomChoiceResize and mmpretrain's RandomTranslatePad; no step that turns, crops or mirrors the image may
# join them. Unlike in mmpretrain's config, the image is not cropped (its step is mmdet's), the hue stays (mmcv's change of it
# fails with NumPy 2), and 383 stands for 384, from which its RandomTranslatePad cannot draw a shift.
_base_ = "blip_images.py"

image_size = 384
records = dict(type="FromMMPretrain")
load = dict(type="LoadImage", imdecode_backend="pillow")
jitter = dict(type="mmpretrain.ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, backend="cv2")
sizes = [(383, 383), (360, 360), (344, 344), (312, 312), (300, 300), (286, 286), (270, 270)]
train_pipeline = [
    records,
    load,
    dict(type="RandomApply", transforms=[jitter], prob=0.5),
    dict(type="RandomChoiceResize", scales=sizes, keep_ratio=False),
    dict(type="mmpretrain.RandomTranslatePad", size=image_size, aug_translate=True),
    _base_.tokenize,
    _base_.pack,
]
test_pipeline = [records, load, _base_.resize, _base_.tokenize, _base_.pack]

refcoco = dict(
    type="mmpretrain.RefCOCO",
    data_root="data/coco",
    data_prefix="train2014",
    ann_file="refcoco/instances.json",
    split_file="refcoco/refs(unc).p",
)
train = dict(**refcoco, split="train", pipeline=train_pipeline)
val = dict(**refcoco, split="val", pipeline=test_pipeline)
test = dict(**refcoco, split="testA", pipeline=test_pipeline)  # or "testB"

train_dataloader = dict(
    **_base_.loader,
    batch_size=16,
    sampler=_base_.train_sampler,
    dataset=dict(type="MMPretrainDataset", dataset=train),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=16,
    sampler=_base_.test_sampler,
    dataset=dict(type="MMPretrainDataset", dataset=val),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=16,
    sampler=_base_.test_sampler,
    dataset=dict(type="MMPretrainDataset", dataset=test),
)

val_evaluator = [
    dict(type="MMPretrainMetric", metric=dict(type="mmpretrain.VisualGroundingMetric")),
    dict(type="ComputeReport"),
]
test_evaluator = val_evaluator
