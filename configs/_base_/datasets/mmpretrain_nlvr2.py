# NLVR2 by mmpretrain's class, for BLIP (docs/mmpretrain_data.md): an alternative to blip_nlvr2.py, which also measures
# consistency. Training images lie in one folder, data/nlvr2/train: mmpretrain's class does not know the official ones.
_base_ = "blip_images.py"

records = dict(type="FromMMPretrain")
load = dict(type="LoadImages", imdecode_backend="pillow", transforms=[_base_.resize])
augmented = dict(type="LoadImages", imdecode_backend="pillow", transforms=[_base_.crop, _base_.flip, _base_.augment])
train_pipeline = [records, augmented, _base_.tokenize, _base_.pack]
test_pipeline = [records, load, _base_.tokenize, _base_.pack]

nlvr2 = dict(type="mmpretrain.NLVR2", data_root="data/nlvr2")
train = dict(**nlvr2, data_prefix="train", ann_file="train.json", pipeline=train_pipeline)
dev = dict(**nlvr2, data_prefix="dev", ann_file="dev.json", pipeline=test_pipeline)
test1 = dict(**nlvr2, data_prefix="test1", ann_file="test1.json", pipeline=test_pipeline)
named = dict(type="MMPretrainDataset", answers=["False", "True"])

train_dataloader = dict(
    **_base_.loader,
    batch_size=16,
    sampler=_base_.train_sampler,
    dataset=dict(**named, dataset=train),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=64,
    sampler=_base_.test_sampler,
    dataset=dict(**named, dataset=dev),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=64,
    sampler=_base_.test_sampler,
    dataset=dict(**named, dataset=test1),
)

val_evaluator = [dict(type="MMPretrainMetric", metric=dict(type="mmpretrain.Accuracy")), dict(type="ComputeReport")]
test_evaluator = val_evaluator
