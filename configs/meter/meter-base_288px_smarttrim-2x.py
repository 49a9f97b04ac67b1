# bash tools/dist_train.sh configs/meter/meter-base_288px_smarttrim-2x.py 8 --auto-scale-lr
# The full METER with SmartTrim at half its multiply-adds, on easy-VQA, enlarged, which needs no licensed data.
# METER's own tasks are in meter-base_vqav2_*.py and beside. The tokenizer of roberta-base must lie in the local Hugging Face
# cache or in the named folder.
_base_ = [
    "../_base_/models/meter_base.py",
    "../_base_/datasets/easy_vqa.py",
    "../_base_/schedules/meter.py",
    "../_base_/default_runtime.py",
]

image_size = 288
model = dict(
    backbone=dict(vision=dict(image_size=image_size)),
    policy=dict(type="SmartTrim"),
    distillation=dict(type="SelfDistillation", weight=1.0),
    budget=dict(type="ComputeBudget", speedup=2.0),
)
custom_hooks = [dict(type="CurriculumHook", schedule="linear", end=0.7)]

pipeline = [
    dict(type="LoadImage"),
    dict(type="Resize", scale=(image_size, image_size)),
    dict(
        type="TokenizeQuestions",
        tokenizer=dict(type="PretrainedTokenizer", name_or_path="roberta-base"),
        max_length=50,
    ),
    dict(type="PackVLInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = dict(dataset=dict(pipeline=pipeline))
# CLIP's normalisation, on the scale 0-255
data_preprocessor = dict(mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323])
