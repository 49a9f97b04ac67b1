# 3 x 3 cells of 64 px, one to all of them with a picture of easy-VQA (the PyPI package `easy-vqa`), and easy-VQA's questions
# about the picture in one cell: "second row, third column: what color is the shape?". 13 answers.
# easy-VQA's words and those of the places; with <s>, <pad>, </s> and <unk> they make 38 ids.
words = [
    "a", "black", "blue", "brown", "circle", "color", "contain", "does", "gray", "green", "image", "in", "is", "no",
    "not", "of", "present", "rectangle", "red", "shape", "teal", "the", "there", "triangle", "what", "yellow", "?",
    "first", "second", "third", "row", "column", ",", ":",
]  # fmt: skip
pipeline = [
    dict(type="LoadMosaic"),
    dict(type="TokenizeQuestions", tokenizer=dict(type="WordTokenizer", words=words), max_length=20),
    dict(type="PackVLInputs"),
]
mosaics = dict(type="MosaicVQA", grid=3, questions_per_mosaic=4, pipeline=pipeline)
# Decoding so small images costs less than a worker process would on two cores. With workers, add persistent_workers=True.
loader = dict(batch_size=32, num_workers=0, collate_fn=dict(type="pseudo_collate"))

train_dataloader = dict(
    **loader,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(**mosaics, split="train", num_mosaics=20000),
)
# pictures of easy-VQA's val: 400 of its official training images, which train leaves out; test: of its official test images
val_dataloader = dict(
    **loader,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**mosaics, split="val", num_mosaics=500),
)
test_dataloader = dict(
    **loader,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**mosaics, split="test", num_mosaics=2000),
)

val_evaluator = [dict(type="VQAAccuracy"), dict(type="ComputeReport")]
test_evaluator = val_evaluator

# Pale backgrounds (230 to 255) become nearly 0, so that a patch without a shape is hardly more than its place.
data_preprocessor = dict(type="VisionLanguagePreprocessor", mean=[243.0] * 3, std=[255.0] * 3)
