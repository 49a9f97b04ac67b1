# DeiT-S/16 at 224 px (arXiv 2012.12877) as mmpretrain has it, in configs/deit/deit-small_4xb256_in1k.py: the dense model with
# the training that the trimmed ones get, from mmpretrain's public file, without mixup and RandAugment.
# bash tools/dist_train.sh configs/vit/deit-small_imagenet_dense.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=128 \
#     model.backbone.checkpoint=deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth
_base_ = [
    "../_base_/datasets/imagenet_224px.py",
    "../_base_/schedules/vit.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="MMPretrainBackbone",
        model=dict(
            type="ImageClassifier",
            backbone=dict(type="VisionTransformer", arch="deit-small", img_size=224, patch_size=16),
            head=dict(type="VisionTransformerClsHead", num_classes=1000, in_channels=384),
        ),
    ),
    policy=dict(type="Dense"),
    task_loss=dict(type="mmpretrain.LabelSmoothLoss", label_smooth_val=0.1, mode="original", num_classes=1000),
)
