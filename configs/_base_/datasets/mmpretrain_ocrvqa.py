# OCR-VQA by mmpretrain's class, for models that write or rank answers (docs/mmpretrain_data.md).
_base_ = "blip_images_480px.py"

answers = "data/ocrvqa/answers.json"
load = dict(type="LoadImage", imdecode_backend="pillow")
records = dict(type="FromMMPretrain")
tokenize_answers = dict(type="TokenizeAnswers", tokenizer=_base_.tokenizer, max_length=32)
train_pipeline = [records, load, _base_.crop, _base_.augment, _base_.tokenize, tokenize_answers, _base_.pack]
test_pipeline = [records, load, _base_.resize, _base_.tokenize, _base_.pack]

ocrvqa = dict(type="mmpretrain.OCRVQA", data_root="data/ocrvqa", data_prefix="images", ann_file="annotations/dataset.json")
named = dict(type="MMPretrainDataset", answers=answers)

train_dataloader = dict(
    **_base_.loader,
    batch_size=16,
    sampler=_base_.train_sampler,
    dataset=dict(**named, dataset=dict(**ocrvqa, split="train", pipeline=train_pipeline)),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(**named, dataset=dict(**ocrvqa, split="val", pipeline=test_pipeline)),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(**named, dataset=dict(**ocrvqa, split="test", pipeline=test_pipeline)),
)

val_evaluator = [dict(type="AnswerAccuracy"), dict(type="ComputeReport")]
test_evaluator = val_evaluator
