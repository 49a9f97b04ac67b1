# GQA by mmpretrain's class, for BLIP (docs/mmpretrain_data.md): trained on train_balanced, tested on testdev_balanced. The
# model's `answers` are the data set's classes. A classifier instead (METER) takes records = dict(type="FromMMPretrain",
# answers=answers) and no tokenize_answers.
_base_ = "blip_images_480px.py"

answers = "data/gqa/answers.json"
load = dict(type="LoadImage", imdecode_backend="pillow")
records = dict(type="FromMMPretrain")
tokenize_answers = dict(type="TokenizeAnswers", tokenizer=_base_.tokenizer)
train_pipeline = [records, load, _base_.crop, _base_.flip, _base_.augment, _base_.tokenize, tokenize_answers, _base_.pack]
test_pipeline = [records, load, _base_.resize, _base_.tokenize, _base_.pack]

gqa = dict(type="mmpretrain.GQA", data_root="data/gqa", data_prefix="images")
train_balanced = dict(**gqa, ann_file="annotations/train_balanced_questions.json", pipeline=train_pipeline)
testdev_balanced = dict(**gqa, ann_file="annotations/testdev_balanced_questions.json", pipeline=test_pipeline)
named = dict(type="MMPretrainDataset", answers=answers)

train_dataloader = dict(
    **_base_.loader,
    batch_size=16,
    sampler=_base_.train_sampler,
    dataset=dict(**named, dataset=train_balanced),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(**named, dataset=testdev_balanced),
)
test_dataloader = val_dataloader

# mmpretrain's: dict(type="MMPretrainMetric", metric=dict(type="mmpretrain.GQAAcc")), which normalises answers as VQAv2 does
val_evaluator = [dict(type="AnswerAccuracy"), dict(type="ComputeReport")]
test_evaluator = val_evaluator
