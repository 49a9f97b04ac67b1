# Retrieval on Flickr30K for BLIP and ALBEF, in data/flickr30k (docs/data.md). Training has a caption an item, and draws wrong
# pairs from the batch. Unlike in LAVIS, captions keep their punctuation. Validation ranks the first 100 images and their
# captions: its recalls are higher than those of the whole split.
_base_ = "blip_images.py"

common = dict(type="KarpathyRetrieval", source="flickr30k", data_root="data/flickr30k")
load = dict(type="LoadImage", imdecode_backend="pillow")
tokenize = {**_base_.tokenize, "max_length": 35}
train_pipeline = [load, _base_.crop, _base_.flip, _base_.augment, tokenize, _base_.pack]
test_pipeline = [load, _base_.resize, tokenize, _base_.pack]

train_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.train_sampler,
    dataset=dict(**common, split="train", group_questions=False, false_captions=0, pipeline=train_pipeline),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=8,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="val", num_images=100, pipeline=test_pipeline),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=8,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="test", pipeline=test_pipeline),
)

val_evaluator = [dict(type="RetrievalRecall"), dict(type="ComputeReport")]
test_evaluator = val_evaluator
