# Flickr30K's captions by mmpretrain's class, for BLIP (docs/mmpretrain_data.md). A test has each image once for each of its
# captions; the metric takes the first.
_base_ = "blip_images.py"

records = dict(type="FromMMPretrain", prompt="a picture of")
load = dict(type="LoadImage", imdecode_backend="pillow")
tokenize_captions = [
    dict(type="CleanCaptions", max_words=50),
    dict(type="TokenizeAnswers", tokenizer=_base_.tokenizer, max_length=37),  # 40 with the prompt's three words
]
train_pipeline = [
    records, load, _base_.crop, _base_.flip, _base_.augment, _base_.tokenize, *tokenize_captions, _base_.pack,
]  # fmt: skip
test_pipeline = [records, load, _base_.resize, _base_.tokenize, _base_.pack]

flickr30k = dict(
    type="mmpretrain.Flickr30kCaption",
    data_root="data/flickr30k",
    ann_file="annotations/dataset_flickr30k.json",
    data_prefix="images",
)
train = dict(**flickr30k, split="train", pipeline=train_pipeline)
val = dict(**flickr30k, split="val", pipeline=test_pipeline)
test = dict(**flickr30k, split="test", pipeline=test_pipeline)

train_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.train_sampler,
    dataset=dict(type="MMPretrainDataset", dataset=train),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(type="MMPretrainDataset", dataset=val),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(type="MMPretrainDataset", dataset=test),
)

# the files of references are made by mmpretrain's tools/dataset_converters/convert_flickr30k_ann.py; Java is needed
val_scores = dict(type="mmpretrain.COCOCaption", ann_file="data/flickr30k_val_gt.json")
val_evaluator = [dict(type="MMPretrainMetric", metric=val_scores), dict(type="ComputeReport")]
test_scores = dict(type="mmpretrain.COCOCaption", ann_file="data/flickr30k_test_gt.json")
test_evaluator = [dict(type="MMPretrainMetric", metric=test_scores), dict(type="ComputeReport")]
