# ALBEF's recipe for retrieval on Flickr30K (arXiv 2107.07651, LAVIS's config): batch 256 (8 GPUs x 32), 10 epochs of captions,
# 384 px, lr 1e-5 to 1e-6. Needs LAVIS (docs/lavis.md), and LAVIS's queue batches that divide its 65,536 pairs.
# Images and texts are encoded apart, so that no text can guide the image encoder: text_first is refused.
# bash tools/dist_train.sh configs/lavis_albef/albef_flickr30k-retrieval_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=ALBEF.pth
_base_ = [
    "../_base_/datasets/albef_flickr30k_retrieval.py",
    "../_base_/schedules/albef.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="TrimmedVLM",
    backbone=dict(type="LavisBackbone", arch="albef_retrieval", model_type="flickr"),
    policy=dict(type="Dense"),
    task_loss=dict(type="ContrastAndMatching"),
)

max_iters = 5660
train_cfg = dict(max_iters=max_iters, val_interval=566)
val_cfg = dict(type="AllPairsValLoop", top_k=128)
test_cfg = dict(type="AllPairsTestLoop", top_k=128)
optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min_ratio=0.1, by_epoch=False, T_max=max_iters, end=max_iters)]
custom_hooks = [dict(type="RampUpHook", end=2 / 10)]  # two epochs
auto_scale_lr = dict(base_batch_size=256)
