# NLVR2 for METER, in data/nlvr2 (docs/data.md): two images an item. Another size in a config that starts from this one:
# train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(image_size=384))
_base_ = "meter_images.py"

image_size = 288
common = dict(type="NLVR2", data_root="data/nlvr2", image_size=image_size)
load = dict(type="LoadImages", imdecode_backend="pillow", transforms=[_base_.resize])
augmented = dict(type="LoadImages", imdecode_backend="pillow", transforms=[_base_.augment, _base_.resize])
train_pipeline = [augmented, _base_.tokenize, _base_.pack]
test_pipeline = [load, _base_.tokenize, _base_.pack]

train_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.train_sampler,
    dataset=dict(**common, split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="dev", pipeline=test_pipeline),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="test1", pipeline=test_pipeline),
)

val_evaluator = [dict(type="NLVR2Accuracy"), dict(type="ComputeReport")]
test_evaluator = val_evaluator
