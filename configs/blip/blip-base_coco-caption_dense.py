# mmpretrain's recipe for COCO's captions: batch 256 (8 GPUs x 32), 10 epochs, 384 px, lr 1e-5; but weight decay is not on norms
# and biases. Goes on from mmpretrain's fine-tuned file. Needs Java for the official scores.
# bash tools/dist_train.sh configs/blip/blip-base_coco-caption_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip-base_3rdparty_coco-caption_20230419-a5b71af3.pth
_base_ = [
    "../_base_/models/mmpretrain_blip_caption.py",
    "../_base_/datasets/blip_coco_caption.py",
    "../_base_/schedules/blip.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(tokenizer=_base_.tokenizer))

max_iters = 22_140
train_cfg = dict(max_iters=max_iters, val_interval=2214)
optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
auto_scale_lr = dict(base_batch_size=256)
