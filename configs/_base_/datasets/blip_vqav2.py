# VQAv2 for BLIP and ALBEF, in data/vqav2 (docs/data.md). As they do, training takes train + val, so that val measures nothing
# afterwards: to choose anything by val, train on split="train" alone. Unlike them, it has no questions of Visual Genome; the
# answers that are ranked are METER's 3,129 classes, not their 3,128, and a question that has none of them is left out of
# training; and questions keep their punctuation. The model's `answers` are the data set's classes.
_base_ = "blip_images.py"

answers = "data/vqav2/answers.json"
common = dict(type="VQAv2", data_root="data/vqav2", num_classes=3129)
load = dict(type="LoadImage", imdecode_backend="pillow")
tokenize_answers = dict(type="TokenizeAnswers", tokenizer=_base_.tokenizer)
train_pipeline = [load, _base_.crop, _base_.flip, _base_.augment, _base_.tokenize, tokenize_answers, _base_.pack]
test_pipeline = [load, _base_.resize, _base_.tokenize, _base_.pack]

train_dataloader = dict(
    **_base_.loader,
    batch_size=16,
    sampler=_base_.train_sampler,
    dataset=dict(**common, split=["train", "val"], group_questions=False, pipeline=train_pipeline),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=8,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="val", pipeline=test_pipeline),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=8,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="test-dev", pipeline=test_pipeline),
)

val_evaluator = [dict(type="VQAAccuracy"), dict(type="ComputeReport")]
# test-dev's answers are not public: the file goes to the server
test_evaluator = [dict(type="VQASubmission", out_file="work_dirs/vqav2_test-dev.json"), dict(type="ComputeReport")]
