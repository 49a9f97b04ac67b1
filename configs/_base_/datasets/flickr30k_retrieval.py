# Retrieval on Flickr30K for METER, in data/flickr30k (docs/data.md). Training has a caption an item, with 15 false ones. METER
# trains on val as well: joined=["val"]. Validation ranks the first 100 images and their captions: its recalls are higher than
# those of the whole split. Another size in a config that starts from this one:
# train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(image_size=288))
_base_ = "meter_images.py"

image_size = 384
common = dict(type="KarpathyRetrieval", source="flickr30k", data_root="data/flickr30k", image_size=image_size)
tokenize = dict(type="TokenizeQuestions", tokenizer=_base_.tokenizer, max_length=40)
train_pipeline = [_base_.load, _base_.augment, _base_.resize, tokenize, _base_.pack]
test_pipeline = [_base_.load, _base_.resize, tokenize, _base_.pack]

train_dataloader = dict(
    **_base_.loader,
    batch_size=8,
    sampler=_base_.train_sampler,
    dataset=dict(**common, split="train", group_questions=False, false_captions=15, pipeline=train_pipeline),
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
