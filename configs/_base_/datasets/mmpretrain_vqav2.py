# VQAv2 by mmpretrain's COCOVQA, with Visual Genome's questions by its VGVQA, for BLIP (docs/mmpretrain_data.md): an alternative
# to blip_vqav2.py. As BLIP does, training takes train + val + Visual Genome, whose answers have the weight 0.2. The model's
# `answers` are the data set's classes.
_base_ = "blip_images_480px.py"

answers = "data/vqav2/answers.json"
load = dict(type="LoadImage", imdecode_backend="pillow")
records = dict(type="FromMMPretrain", ten_answers=True)
genome_records = dict(type="FromMMPretrain", first_id=1_000_000_000)  # beyond COCO's numbers
tokenize_answers = dict(type="TokenizeAnswers", tokenizer=_base_.tokenizer)
train_steps = [load, _base_.crop, _base_.flip, _base_.augment, _base_.tokenize, tokenize_answers, _base_.pack]
test_pipeline = [records, load, _base_.resize, _base_.tokenize, _base_.pack]

vqa = dict(type="mmpretrain.COCOVQA", data_root="data/coco")
train2014 = dict(
    **vqa,
    data_prefix="train2014",
    question_file="annotations/v2_OpenEnded_mscoco_train2014_questions.json",
    ann_file="annotations/v2_mscoco_train2014_annotations.json",
    pipeline=[records, *train_steps],
)
val2014 = dict(
    **vqa,
    data_prefix="val2014",
    question_file="annotations/v2_OpenEnded_mscoco_val2014_questions.json",
    ann_file="annotations/v2_mscoco_val2014_annotations.json",
)
test_dev2015 = dict(
    **vqa,
    data_prefix="test2015",
    question_file="annotations/v2_OpenEnded_mscoco_test-dev2015_questions.json",
    pipeline=test_pipeline,
)
visual_genome = dict(
    type="mmpretrain.datasets.vg_vqa.VGVQA",  # its file: mmpretrain does not register it by itself
    data_root="data/visual_genome",
    data_prefix=dict(image="."),  # a row's image is named 'image/1.jpg'
    ann_file="vg_qa.json",
    pipeline=[genome_records, *train_steps],
)
named = dict(type="MMPretrainDataset", answers=answers)
train_sets = [
    dict(**named, dataset=train2014),
    dict(**named, dataset=dict(**val2014, pipeline=[records, *train_steps])),
    dict(**named, dataset=visual_genome),
]

train_dataloader = dict(
    **_base_.loader,
    batch_size=16,
    sampler=_base_.train_sampler,
    dataset=dict(type="ConcatDataset", datasets=train_sets),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(**named, dataset=dict(**val2014, pipeline=test_pipeline)),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(**named, dataset=test_dev2015),
)

# mmpretrain's: dict(type="MMPretrainMetric", metric=dict(type="mmpretrain.VQAAcc")), whose accuracy is not the official one
val_evaluator = [dict(type="VQAAccuracy"), dict(type="ComputeReport")]
# test-dev's answers are not public: the file goes to the server
test_evaluator = [dict(type="VQASubmission", out_file="work_dirs/vqav2_test-dev.json"), dict(type="ComputeReport")]
