# VQAv2 for BLIP, whose images have 480 px there. RandAugment's shift is of 6 pixels at that size, in LAVIS of 5.
_base_ = "blip_vqav2.py"

image_size = 480
crop = {**_base_.crop, "scale": image_size}
resize = {**_base_.resize, "scale": (image_size, image_size)}
train_pipeline = [_base_.load, crop, _base_.flip, _base_.augment, _base_.tokenize, _base_.tokenize_answers, _base_.pack]
test_pipeline = [_base_.load, resize, _base_.tokenize, _base_.pack]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
