# COCO's captions by mmpretrain's class, for BLIP (docs/mmpretrain_data.md): an alternative to blip_coco_caption.py, from the
# same files.
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

coco = dict(type="mmpretrain.COCOCaption", data_root="data/coco")
train = dict(**coco, ann_file="annotations/coco_karpathy_train.json", pipeline=train_pipeline)
val = dict(**coco, ann_file="annotations/coco_karpathy_val.json", pipeline=test_pipeline)
test = dict(**coco, ann_file="annotations/coco_karpathy_test.json", pipeline=test_pipeline)

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

# mmpretrain's, with METEOR and SPICE: dict(type="MMPretrainMetric", metric=dict(type="mmpretrain.COCOCaption",
#     ann_file="data/coco/annotations/coco_karpathy_val_gt.json")); without Java: tokenizer="plain"
val_evaluator = [dict(type="CaptionScores", tokenizer="ptb"), dict(type="ComputeReport")]
test_evaluator = val_evaluator
