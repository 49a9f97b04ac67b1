# ALBEF's recipe for NLVR2 (arXiv 2107.07651 and its public code): batch 128 (8 GPUs x 16), 10 epochs, 384 px, lr 2e-5. LAVIS's
# own has a warm-up of 650 iterations. The file is that of ALBEF's further pre-training, on pairs of images. Needs LAVIS
# (docs/lavis.md).
# bash tools/dist_train.sh configs/lavis_albef/albef_nlvr2_dense.py 8 --amp \
#     --cfg-options model.backbone.checkpoint=pretrain_model_nlvr.pth
_base_ = [
    "../_base_/datasets/blip_nlvr2.py",
    "../_base_/schedules/albef.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="TrimmedVLM",
    backbone=dict(type="LavisBackbone", arch="albef_nlvr", model_type="nlvr"),
    policy=dict(type="Dense"),
)
auto_scale_lr = dict(base_batch_size=128)
