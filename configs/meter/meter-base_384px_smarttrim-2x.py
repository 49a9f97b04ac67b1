# bash tools/dist_train.sh configs/meter/meter-base_384px_smarttrim-2x.py 8 --auto-scale-lr
_base_ = "meter-base_288px_smarttrim-2x.py"

image_size = 384
model = dict(backbone=dict(vision=dict(image_size=image_size)))
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
