# Retrieval on Flickr30K for ALBEF, which trains on captions of up to 30 tokens.
_base_ = "blip_flickr30k_retrieval.py"

tokenize = {**_base_.tokenize, "max_length": 30}
train_pipeline = [_base_.load, _base_.crop, _base_.flip, _base_.augment, tokenize, _base_.pack]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
