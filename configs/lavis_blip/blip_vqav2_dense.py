# BLIP's recipe for VQAv2 (arXiv 2201.12086): batch 256 (16 GPUs x 16), 10 epochs of train + val, 480 px, lr 2e-5; but for
# Visual Genome's questions. Needs LAVIS (docs/lavis.md).
# bash tools/dist_train.sh configs/lavis_blip/blip_vqav2_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=model_base_capfilt_large.pth train_dataloader.batch_size=32
_base_ = [
    "../_base_/datasets/blip_vqav2_480px.py",
    "../_base_/schedules/blip.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="LavisBackbone",
        arch="blip_vqa",
        model_type="vqav2",
        answers=_base_.answers,
        tokenizer=_base_.tokenizer,
    ),
    policy=dict(type="Dense"),
    task_loss=dict(type="AnswerGeneration"),
)

max_iters = 25_700
train_cfg = dict(max_iters=max_iters, val_interval=2570)
optim_wrapper = dict(optimizer=dict(lr=2e-5))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
auto_scale_lr = dict(base_batch_size=256)
