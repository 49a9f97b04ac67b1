# BLIP's recipe for retrieval on Flickr30K (arXiv 2201.12086): batch 256 (8 GPUs x 32), 6 epochs of captions, 384 px, lr 1e-5.
# Needs LAVIS (docs/lavis.md), and LAVIS's queue batches that divide its 57,600 pairs.
# Images and texts are encoded apart, so that no text can guide the image encoder: text_first is refused.
# bash tools/dist_train.sh configs/lavis_blip/blip_flickr30k-retrieval_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=model_base_capfilt_large.pth
_base_ = [
    "../_base_/datasets/blip_flickr30k_retrieval.py",
    "../_base_/schedules/blip.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="TrimmedVLM",
    backbone=dict(type="LavisBackbone", arch="blip_retrieval", model_type="flickr"),
    policy=dict(type="Dense"),
    task_loss=dict(type="ContrastAndMatching"),
)

max_iters = 3396
train_cfg = dict(max_iters=max_iters, val_interval=566)
val_cfg = dict(type="AllPairsValLoop", top_k=128)
test_cfg = dict(type="AllPairsTestLoop", top_k=128)
optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=max_iters, eta_min=0.0, by_epoch=False, end=max_iters)]
custom_hooks = [dict(type="RampUpHook", end=2 / 6)]  # two epochs
auto_scale_lr = dict(base_batch_size=256)
