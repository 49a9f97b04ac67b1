# SNLI-VE for METER, in data/snli_ve (docs/data.md). Training has a sentence an item. Another size in a config that starts from
# this one: train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(image_size=288))
_base_ = "meter_images.py"

image_size = 384
common = dict(type="SNLIVE", data_root="data/snli_ve", image_size=image_size)

train_dataloader = dict(
    **_base_.loader,
    batch_size=8,
    sampler=_base_.train_sampler,
    dataset=dict(**common, split="train", group_questions=False, pipeline=_base_.train_pipeline),
)
val_dataloader = dict(
    **_base_.loader,
    batch_size=8,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="dev", pipeline=_base_.test_pipeline),
)
test_dataloader = dict(
    **_base_.loader,
    batch_size=8,
    sampler=_base_.test_sampler,
    dataset=dict(**common, split="test", pipeline=_base_.test_pipeline),
)

val_evaluator = [dict(type="ClassAccuracy"), dict(type="ComputeReport")]
test_evaluator = val_evaluator
