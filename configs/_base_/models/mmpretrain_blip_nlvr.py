# mmpretrain's BlipNLVR.
_base_ = "mmpretrain_blip.py"

model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="MMPretrainBackbone",
        model=dict(
            type="BlipNLVR",
            vision_backbone=_base_.vision,
            multimodal_backbone=dict(type="BertModel", config={**_base_.bert, "nlvr": True}, add_pooling_layer=False),
        ),
    ),
    policy=dict(type="Dense"),
)
