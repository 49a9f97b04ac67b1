# easy-VQA from the PyPI package `easy-vqa`: 64 px images, template questions, 13 answers.
# The words are those of the training questions; with <s>, <pad>, </s> and <unk> they make 31 ids.
words = [
    "a", "black", "blue", "brown", "circle", "color", "contain", "does", "gray", "green", "image", "in", "is", "no",
    "not", "of", "present", "rectangle", "red", "shape", "teal", "the", "there", "triangle", "what", "yellow", "?",
]  # fmt: skip
pipeline = [
    dict(type="LoadImage"),
    dict(type="TokenizeQuestions", tokenizer=dict(type="WordTokenizer", words=words), max_length=16),
    dict(type="PackVLInputs"),
]
# Decoding so small images costs less than a worker process would on two cores. With workers, add persistent_workers=True.
loader = dict(batch_size=32, num_workers=0, collate_fn=dict(type="pseudo_collate"))

train_dataloader = dict(
    **loader,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="EasyVQA", split="train", questions_per_image=4, pipeline=pipeline),
)
# val: 400 images of the official training split, which train leaves out; test: the official test split
val_dataloader = dict(
    **loader,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="EasyVQA", split="val", pipeline=pipeline),
)
test_dataloader = dict(
    **loader,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="EasyVQA", split="test", pipeline=pipeline),
)

val_evaluator = [dict(type="VQAAccuracy"), dict(type="ComputeReport")]
test_evaluator = val_evaluator

data_preprocessor = dict(type="VisionLanguagePreprocessor", mean=[127.5] * 3, std=[127.5] * 3)
