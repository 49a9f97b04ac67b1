# NoCaps by mmpretrain's class, for a captioner trained on COCO (docs/mmpretrain_data.md). Its server scores the file that is
# written. The official file names each image once for each of ten captions, and mmpretrain's class reads it so: an image is
# described ten times, alike, and the first counts.
_base_ = "blip_images.py"

records = dict(type="FromMMPretrain", prompt="a picture of")
load = dict(type="LoadImage", imdecode_backend="pillow")
test_pipeline = [records, load, _base_.resize, _base_.tokenize, _base_.pack]

nocaps = dict(
    type="mmpretrain.NoCaps",
    data_root="data/nocaps",
    data_prefix=dict(img_path="images"),
    ann_file="annotations/nocaps_val_4500_captions.json",
    pipeline=test_pipeline,
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.test_sampler,
    dataset=dict(type="MMPretrainDataset", dataset=nocaps),
)
test_dataloader = val_dataloader

submission = dict(type="mmpretrain.NocapsSave", save_dir="work_dirs/nocaps")
val_evaluator = [dict(type="MMPretrainMetric", metric=submission), dict(type="ComputeReport")]
test_evaluator = val_evaluator
