# easy-VQA for BLIP, whose decoder gives the answers in words. The tokenizer's ids are those of <s>, <pad>, </s>, <unk> and the
# words; BLIP's [DEC] and [ENC] come last.
_base_ = "easy_vqa.py"

tokenizer = dict(type="WordTokenizer", words=[*_base_.words, "yes"])
answers = [
    "circle", "green", "red", "gray", "yes", "teal", "black", "rectangle", "yellow", "triangle", "brown", "blue", "no",
]  # fmt: skip
pipeline = [
    dict(type="LoadImage"),
    dict(type="TokenizeQuestions", tokenizer=tokenizer, max_length=16),
    dict(type="TokenizeAnswers", tokenizer=tokenizer),
    dict(type="PackVLInputs"),
]
train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(pipeline=pipeline))
