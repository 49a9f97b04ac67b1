# mmpretrain's recipe for retrieval, on Flickr30K: batch 256 (8 GPUs x 32), 6 epochs of captions, 384 px, lr 2e-5, weight decay
# 0.04, here not on norms and biases; 256 candidates of each query are ranked, as mmpretrain does (LAVIS: 128). Needs queue
# batches that divide its 57,600 pairs. Goes on from mmpretrain's file of COCO: it has none of Flickr30K.
# Images and texts are encoded apart, so that no text can guide the image encoder: text_first is refused.
# bash tools/dist_train.sh configs/blip/blip-base_flickr30k-retrieval_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=blip-base_3rdparty_coco-retrieval_20230419-a1804d2c.pth
_base_ = [
    "../_base_/models/mmpretrain_blip_retrieval.py",
    "../_base_/datasets/blip_flickr30k_retrieval.py",
    "../_base_/schedules/blip.py",
    "../_base_/default_runtime.py",
]

max_iters = 3396
train_cfg = dict(max_iters=max_iters, val_interval=566)
val_cfg = dict(type="AllPairsValLoop", top_k=256)
test_cfg = dict(type="AllPairsTestLoop", top_k=256)
optim_wrapper = dict(optimizer=dict(lr=2e-5, weight_decay=0.04))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
custom_hooks = [dict(type="RampUpHook", end=2 / 6)]  # two epochs
auto_scale_lr = dict(base_batch_size=256)
