# Visual Spatial Reasoning by mmpretrain's class, for BLIP (docs/mmpretrain_data.md): is a sentence true of an image? The
# answers are "no" and "yes"; an image is not mirrored, as left and right matter. A classifier instead (METER) takes
# records = dict(type="FromMMPretrain", answers=answers) and no tokenize_answers.
_base_ = "blip_images_480px.py"

answers = ["no", "yes"]
load = dict(type="LoadImage", imdecode_backend="pillow")
records = dict(type="FromMMPretrain")
tokenize_answers = dict(type="TokenizeAnswers", tokenizer=_base_.tokenizer)
train_pipeline = [records, load, _base_.crop, _base_.augment, _base_.tokenize, tokenize_answers, _base_.pack]
test_pipeline = [records, load, _base_.resize, _base_.tokenize, _base_.pack]

vsr = dict(type="mmpretrain.VSR", data_root="data/coco", data_prefix="")
train = dict(**vsr, ann_file="annotations/train.json", pipeline=train_pipeline)
val = dict(**vsr, ann_file="annotations/val.json", pipeline=test_pipeline)
test = dict(**vsr, ann_file="annotations/test.json", pipeline=test_pipeline)
named = dict(type="MMPretrainDataset", answers=answers)

train_dataloader = dict(
    **_base_.loader,
    batch_size=16,
    sampler=_base_.train_sampler,
    dataset=dict(**named, dataset=train),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(**named, dataset=val),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(**named, dataset=test),
)

val_evaluator = [dict(type="AnswerAccuracy"), dict(type="ComputeReport")]
test_evaluator = val_evaluator
