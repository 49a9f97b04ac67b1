# SNLI-VE for BLIP and ALBEF, in data/snli_ve (docs/data.md). Training has a sentence an item. Unlike in LAVIS, sentences keep
# their punctuation. The classes have LAVIS's and ALBEF's order: contradiction, neutral, entailment.
_base_ = "blip_images.py"

common = dict(type="SNLIVE", data_root="data/snli_ve")
load = dict(type="LoadImage", imdecode_backend="pillow")
train_pipeline = [load, _base_.crop, _base_.flip, _base_.augment, _base_.tokenize, _base_.pack]
test_pipeline = [load, _base_.resize, _base_.tokenize, _base_.pack]

train_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.train_sampler,
    dataset=dict(**common, split="train", group_questions=False, pipeline=train_pipeline),
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
    dataset=dict(**common, split="test", pipeline=test_pipeline),
)

val_evaluator = [dict(type="ClassAccuracy"), dict(type="ComputeReport")]
test_evaluator = val_evaluator
