# The METER of the paper (arXiv 2111.02387): CLIP ViT-B/16 without its last block, roberta-base, 6 + 6 fusion layers.
# METER's defaults are the paper's sizes.
model = dict(
    type="TrimmedVLM",
    backbone=dict(type="METER", num_classes=13, vision=dict(image_size=288)),
    policy=dict(type="Dense"),
)
