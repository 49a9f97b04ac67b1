# Emoji pictures and their names in data/noto_emoji (docs/data.md): 2,930 for training, 200 for choosing, 400 for testing, each
# with one name. Training draws wrong pairs from the batch. Pictures are not mirrored: some names say left or right.
image_size = 72
load = dict(type="LoadImage", color_type="unchanged")
white = dict(type="ComposeAlpha")
crop = dict(type="mmpretrain.RandomResizedCrop", scale=image_size, crop_ratio_range=(0.7, 1.0), aspect_ratio_range=(0.9, 1.1))
# the converter writes a tokenizer of the names' 1,434 words beside the pictures
tokenizer = dict(type="PretrainedTokenizer", name_or_path="data/noto_emoji/tokenizer")
tokenize = dict(type="TokenizeQuestions", tokenizer=tokenizer, max_length=24)
pack = dict(type="PackVLInputs")
train_pipeline = [load, white, crop, tokenize, pack]
test_pipeline = [load, white, tokenize, pack]

# Decoding so small pictures costs less than a worker process would on two cores. With workers, add persistent_workers=True.
loader = dict(batch_size=64, num_workers=0, collate_fn=dict(type="pseudo_collate"))
train_dataloader = dict(
    **loader,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="NotoEmoji", split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    **loader,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="NotoEmoji", split="val", pipeline=test_pipeline),
)
test_dataloader = dict(
    **loader,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="NotoEmoji", split="test", pipeline=test_pipeline),
)

val_evaluator = [dict(type="RetrievalRecall"), dict(type="ComputeReport")]
test_evaluator = val_evaluator

# [PAD], [CLS] and [SEP] of the tokenizer
data_preprocessor = dict(type="VisionLanguagePreprocessor", mean=[127.5] * 3, std=[127.5] * 3, pad_id=0, special_ids=[2, 3])
