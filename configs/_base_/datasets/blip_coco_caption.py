# COCO's captions in Karpathy's splits for BLIP, in data/coco (docs/data.md). As in LAVIS: a caption is "a picture of" and what
# its people wrote, lower-cased and without most punctuation, of 40 tokens at most; an image of a training item is cropped,
# flipped and augmented.
_base_ = "blip_images.py"

common = dict(type="COCOKarpathyCaption", data_root="data/coco", prompt="a picture of")
load = dict(type="LoadImage", imdecode_backend="pillow")
tokenize_captions = [
    dict(type="CleanCaptions", max_words=50),
    dict(type="TokenizeAnswers", tokenizer=_base_.tokenizer, max_length=37),  # 40 with the prompt's three words
]
train_pipeline = [load, _base_.crop, _base_.flip, _base_.augment, _base_.tokenize, *tokenize_captions, _base_.pack]
test_pipeline = [load, _base_.resize, _base_.tokenize, _base_.pack]

train_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.train_sampler,
    dataset=dict(**common, split="train", group_questions=False, pipeline=train_pipeline),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="val", pipeline=test_pipeline),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="test", pipeline=test_pipeline),
)

# without Java: tokenizer="plain", whose scores are not the official ones
val_evaluator = [dict(type="CaptionScores", tokenizer="ptb"), dict(type="ComputeReport")]
test_evaluator = [
    dict(type="CaptionScores", tokenizer="ptb", out_file="work_dirs/coco-caption_test.json"),
    dict(type="ComputeReport"),
]
