# mmpretrain's recipe for Flickr30K's captions, by mmpretrain's class and metric: as for COCO's, from mmpretrain's file of COCO.
# bash tools/dist_train.sh configs/blip/blip-base_flickr30k-caption_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip-base_3rdparty_coco-caption_20230419-a5b71af3.pth
_base_ = [
    "../_base_/models/mmpretrain_blip_caption.py",
    "../_base_/datasets/mmpretrain_flickr30k_caption.py",
    "../_base_/schedules/blip.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(tokenizer=_base_.tokenizer))

max_iters = 5660
train_cfg = dict(max_iters=max_iters, val_interval=566)
optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
auto_scale_lr = dict(base_batch_size=256)
