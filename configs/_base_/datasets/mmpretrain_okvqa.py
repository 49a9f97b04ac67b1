# OK-VQA by mmpretrain's COCOVQA, for BLIP (docs/mmpretrain_data.md). The model's `answers` are the data set's classes.
_base_ = "blip_images_480px.py"

answers = "data/okvqa/answers.json"
load = dict(type="LoadImage", imdecode_backend="pillow")
records = dict(type="FromMMPretrain", ten_answers=True)
tokenize_answers = dict(type="TokenizeAnswers", tokenizer=_base_.tokenizer)
train_pipeline = [records, load, _base_.crop, _base_.flip, _base_.augment, _base_.tokenize, tokenize_answers, _base_.pack]
test_pipeline = [records, load, _base_.resize, _base_.tokenize, _base_.pack]

okvqa = dict(type="mmpretrain.COCOVQA", data_root="data/coco")
train2014 = dict(
    **okvqa,
    data_prefix="train2014",
    question_file="annotations/okvqa_OpenEnded_mscoco_train2014_questions.json",
    ann_file="annotations/okvqa_mscoco_train2014_annotations.json",
    pipeline=train_pipeline,
)
val2014 = dict(
    **okvqa,
    data_prefix="val2014",
    question_file="annotations/okvqa_OpenEnded_mscoco_val2014_questions.json",
    ann_file="annotations/okvqa_mscoco_val2014_annotations.json",
    pipeline=test_pipeline,
)
named = dict(type="MMPretrainDataset", answers=answers)

train_dataloader = dict(
    **_base_.loader,
    batch_size=16,
    sampler=_base_.train_sampler,
    dataset=dict(**named, dataset=train2014),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(**named, dataset=val2014),
)
test_dataloader = val_dataloader

val_evaluator = [dict(type="VQAAccuracy"), dict(type="ComputeReport")]
test_evaluator = val_evaluator
