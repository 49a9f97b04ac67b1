# mmpretrain's recipe for NLVR2: batch 256 (8 GPUs x 32), 10 epochs, 384 px, lr 2e-5; but trained on train, where mmpretrain's
# config takes dev, and weight decay is not on norms and biases. Goes on from mmpretrain's fine-tuned file.
# bash tools/dist_train.sh configs/blip/blip-base_nlvr2_dense.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=32 \
#     model.backbone.checkpoint=blip-base_3rdparty_nlvr_20230427-3b14d33f.pth
_base_ = [
    "../_base_/models/mmpretrain_blip_nlvr.py",
    "../_base_/datasets/blip_nlvr2.py",
    "../_base_/schedules/blip.py",
    "../_base_/default_runtime.py",
]

max_iters = 3380
train_cfg = dict(max_iters=max_iters, val_interval=338)
optim_wrapper = dict(optimizer=dict(lr=2e-5))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
auto_scale_lr = dict(base_batch_size=256)
