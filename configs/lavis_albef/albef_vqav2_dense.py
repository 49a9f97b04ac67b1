# ALBEF's recipe for VQAv2 (arXiv 2107.07651 and its public code): batch 256 (8 GPUs x 32), 8 epochs of train + val, 384 px, lr
# 2e-5, a warm-up of 400 iterations; but for Visual Genome's questions. Needs LAVIS (docs/lavis.md).
# bash tools/dist_train.sh configs/lavis_albef/albef_vqav2_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=ALBEF.pth
_base_ = [
    "../_base_/datasets/blip_vqav2.py",
    "../_base_/schedules/albef.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="LavisBackbone",
        arch="albef_vqa",
        model_type="vqav2",
        answers=_base_.answers,
        tokenizer=_base_.tokenizer,
    ),
    policy=dict(type="Dense"),
    task_loss=dict(type="AnswerGeneration"),
)

max_iters = 20_560
train_cfg = dict(max_iters=max_iters, val_interval=2570)
train_dataloader = dict(batch_size=32)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.5, by_epoch=False, end=400),
    dict(type="CosineAnnealingLR", eta_min_ratio=0.05, by_epoch=False, begin=400, T_max=max_iters - 400, end=max_iters),
]
auto_scale_lr = dict(base_batch_size=256)
