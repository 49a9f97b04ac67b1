# METER's recipe for retrieval on Flickr30K (arXiv 2111.02387): batch 512 (8 GPUs x 8 x 8), 10 epochs, 384 px; an item is a
# caption with its image, and 15 captions of other images.
# bash tools/dist_train.sh configs/meter/meter-base_flickr30k-retrieval_dense.py 8 --amp \
#     --cfg-options model.backbone.init_from.meter=METER_PRETRAINED.ckpt
_base_ = [
    "../_base_/models/meter_base.py",
    "../_base_/datasets/flickr30k_retrieval.py",
    "../_base_/schedules/meter.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(num_classes=None, head_name="rank_output", vision=dict(image_size=384)))
data_preprocessor = dict(rank_texts=True)

max_iters = 22_656
train_cfg = dict(max_iters=max_iters, val_interval=2264)
val_cfg = dict(type="AllPairsValLoop")
test_cfg = dict(type="AllPairsTestLoop")
optim_wrapper = dict(
    accumulative_counts=8,
    paramwise_cfg=dict(custom_keys={"rank_output": dict(lr_mult=5.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=max_iters // 10),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=max_iters // 10, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=2000))  # a multiple of accumulative_counts
auto_scale_lr = dict(base_batch_size=64)
