# NLVR2 for BLIP and ALBEF, in data/nlvr2 (docs/data.md): two images an item. Unlike in LAVIS, sentences keep their punctuation,
# and the two images are not exchanged at random together with the words "left" and "right".
_base_ = "blip_images.py"

common = dict(type="NLVR2", data_root="data/nlvr2")
load = dict(type="LoadImages", imdecode_backend="pillow", transforms=[_base_.resize])
augmented = dict(type="LoadImages", imdecode_backend="pillow", transforms=[_base_.crop, _base_.flip, _base_.augment])
train_pipeline = [augmented, _base_.tokenize, _base_.pack]
test_pipeline = [load, _base_.tokenize, _base_.pack]

train_dataloader = dict(
    **_base_.loader,
    batch_size=16,
    sampler=_base_.train_sampler,
    dataset=dict(**common, split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=64,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="dev", pipeline=test_pipeline),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=64,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="test1", pipeline=test_pipeline),
)

val_evaluator = [dict(type="NLVR2Accuracy"), dict(type="ComputeReport")]
test_evaluator = val_evaluator
