# As blip-base_vqav2_dense.py, but by mmpretrain's own classes of the data, which add Visual Genome's questions, as its config
# does; in as many iterations. The policy of blip-base_vqav2_smarttrim-2x.py goes with these data, too.
# bash tools/dist_train.sh configs/blip/blip-base_vqav2-vg_dense.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=32 \
#     model.backbone.checkpoint=blip-base_3rdparty-capflit_vqa_20230505-81488941.pth
_base_ = [
    "../_base_/models/mmpretrain_blip_vqa.py",
    "../_base_/datasets/mmpretrain_vqav2.py",
    "../_base_/schedules/blip.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(answers=_base_.answers, tokenizer=_base_.tokenizer))

max_iters = 25_700
train_cfg = dict(max_iters=max_iters, val_interval=2570)
optim_wrapper = dict(optimizer=dict(lr=2e-5))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
auto_scale_lr = dict(base_batch_size=256)
