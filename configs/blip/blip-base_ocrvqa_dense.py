# mmpretrain's recipe for OCR-VQA, by its class of the data: batch 256 (8 GPUs x 32), 10 epochs of some 800,000 questions, 480
# px, lr 2e-5; answers are written, of 10 tokens at most, as there: a longer title cannot be right. Goes on from mmpretrain's
# file of VQAv2.
# bash tools/dist_train.sh configs/blip/blip-base_ocrvqa_dense.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=32 \
#     model.backbone.checkpoint=blip-base_3rdparty-capflit_vqa_20230505-81488941.pth
_base_ = [
    "../_base_/models/mmpretrain_blip_vqa.py",
    "../_base_/datasets/mmpretrain_ocrvqa.py",
    "../_base_/schedules/blip.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        answers=_base_.answers,
        tokenizer=_base_.tokenizer,
        model=dict(head=dict(inference_method="generate")),
        generation=dict(num_beams=3, max_length=10, min_length=1),
    )
)

max_iters = 31_300
train_cfg = dict(max_iters=max_iters, val_interval=3130)
optim_wrapper = dict(optimizer=dict(lr=2e-5))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
auto_scale_lr = dict(base_batch_size=256)
