# mmpretrain's recipe for VQAv2: batch 256 (8 GPUs x 32), 10 epochs of train + val, 480 px, lr 2e-5, answers ranked; but for
# Visual Genome's questions, and, as in all configs of BLIP here, weight decay not on norms and biases. mmpretrain has no file
# of a BLIP that is pre-trained alone: a training goes on from its fine-tuned one.
# bash tools/dist_train.sh configs/blip/blip-base_vqav2_dense.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=32 \
#     model.backbone.checkpoint=blip-base_3rdparty-capflit_vqa_20230505-81488941.pth
_base_ = [
    "../_base_/models/mmpretrain_blip_vqa.py",
    "../_base_/datasets/blip_vqav2_480px.py",
    "../_base_/schedules/blip.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(answers=_base_.answers, tokenizer=_base_.tokenizer))

max_iters = 25_700
train_cfg = dict(max_iters=max_iters, val_interval=2570)
optim_wrapper = dict(optimizer=dict(lr=2e-5))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
auto_scale_lr = dict(base_batch_size=256)
