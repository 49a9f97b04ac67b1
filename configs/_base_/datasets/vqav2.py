# VQAv2 for METER, in data/vqav2 (docs/data.md). METER trains on train + val, a question an item, so that val measures nothing
# afterwards: to choose anything by val, train on split="train" alone. Another size in a config that starts from this one:
# train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(image_size=384))
_base_ = "meter_images.py"

image_size = 576
common = dict(type="VQAv2", data_root="data/vqav2", num_classes=3129, image_size=image_size)

train_dataloader = dict(
    **_base_.loader,
    batch_size=32,
    sampler=_base_.train_sampler,
    dataset=dict(**common, split=["train", "val"], group_questions=False, pipeline=_base_.train_pipeline),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=8,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="val", pipeline=_base_.test_pipeline),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=8,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="test-dev", pipeline=_base_.test_pipeline),
)

val_evaluator = [dict(type="VQAAccuracy"), dict(type="ComputeReport")]
# test-dev's answers are not public: the file goes to the server
test_evaluator = [dict(type="VQASubmission", out_file="work_dirs/vqav2_test-dev.json"), dict(type="ComputeReport")]
