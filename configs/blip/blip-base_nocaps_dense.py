# NoCaps is for tests alone, by mmpretrain's class: of a captioner that blip-base_coco-caption_dense.py trained.
# bash tools/dist_test.sh configs/blip/blip-base_nocaps_dense.py \
#     work_dirs/blip-base_coco-caption_dense/iter_22140.pth 8
_base_ = [
    "../_base_/models/mmpretrain_blip_caption.py",
    "../_base_/datasets/mmpretrain_nocaps.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(tokenizer=_base_.tokenizer))

val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
