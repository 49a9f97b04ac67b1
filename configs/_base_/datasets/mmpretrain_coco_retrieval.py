# Retrieval on COCO by mmpretrain's class, for BLIP and ALBEF (docs/mmpretrain_data.md): an alternative to KarpathyRetrieval
# with source="coco". `indices=100` of a data set takes the first 100 images, and all texts of them.
_base_ = "blip_images.py"

records = dict(type="FromMMPretrain")
load = dict(type="LoadImage", imdecode_backend="pillow")
tokenize = {**_base_.tokenize, "max_length": 35}
train_pipeline = [records, load, _base_.crop, _base_.flip, _base_.augment, tokenize, _base_.pack]
test_pipeline = [records, load, _base_.resize, tokenize, _base_.pack]

coco = dict(type="mmpretrain.COCORetrieval", data_root="data/coco")
train = dict(**coco, ann_file="annotations/caption_karpathy_train2014.json", pipeline=train_pipeline)
val = dict(**coco, ann_file="annotations/caption_karpathy_val2014.json", test_mode=True, pipeline=test_pipeline)
test = dict(**coco, ann_file="annotations/caption_karpathy_test2014.json", test_mode=True, pipeline=test_pipeline)

train_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.train_sampler,
    dataset=dict(type="MMPretrainDataset", dataset=train),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=8,
    sampler=_base_.test_sampler,
    dataset=dict(type="MMPretrainDataset", dataset=val),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=8,
    sampler=_base_.test_sampler,
    dataset=dict(type="MMPretrainDataset", dataset=test),
)

# mmpretrain's, of texts for images alone:
# dict(type="MMPretrainMetric", metric=dict(type="mmpretrain.RetrievalRecall", topk=(1, 5, 10)))
val_evaluator = [dict(type="RetrievalRecall"), dict(type="ComputeReport")]
test_evaluator = val_evaluator
