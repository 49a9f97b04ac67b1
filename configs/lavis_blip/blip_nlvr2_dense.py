# BLIP's recipe for NLVR2 (arXiv 2201.12086): batch 256 (16 GPUs x 16), 15 epochs, 384 px, lr 3e-5. Needs LAVIS (docs/lavis.md).
# bash tools/dist_train.sh configs/lavis_blip/blip_nlvr2_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=model_base_capfilt_large.pth train_dataloader.batch_size=32
_base_ = [
    "../_base_/datasets/blip_nlvr2.py",
    "../_base_/schedules/blip.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="TrimmedVLM",
    backbone=dict(type="LavisBackbone", arch="blip_nlvr", model_type="nlvr"),
    policy=dict(type="Dense"),
)
auto_scale_lr = dict(base_batch_size=256)
