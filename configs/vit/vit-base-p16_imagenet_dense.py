# ViT-B/16 at 384 px (arXiv 2010.11929) as mmpretrain has it, in configs/vision_transformer/vit-base-p16_64xb64_in1k-384px.py:
# the dense model with the training that the trimmed ones get, from mmpretrain's public file.
# bash tools/dist_train.sh configs/vit/vit-base-p16_imagenet_dense.py 8 --amp \
#     --cfg-options train_dataloader.batch_size=128 \
#     model.backbone.checkpoint=vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b.pth
_base_ = [
    "../_base_/datasets/imagenet.py",
    "../_base_/schedules/vit.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="MMPretrainBackbone",
        model=dict(
            type="ImageClassifier",
            backbone=dict(type="VisionTransformer", arch="b", img_size=384, patch_size=16, drop_rate=0.1),
            head=dict(type="VisionTransformerClsHead", num_classes=1000, in_channels=768),
        ),
    ),
    policy=dict(type="Dense"),
    task_loss=dict(type="mmpretrain.LabelSmoothLoss", label_smooth_val=0.1, mode="classy_vision", num_classes=1000),
)
