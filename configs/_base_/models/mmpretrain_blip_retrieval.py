# mmpretrain's BlipRetrieval. It has topk=256, so that the loops of the configs rank the 256 candidates of the highest
# similarity, too.
_base_ = "mmpretrain_blip.py"

model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="MMPretrainBackbone",
        model=dict(
            type="BlipRetrieval",
            vision_backbone=_base_.vision,
            text_backbone=dict(type="XBertEncoder", med_config=_base_.bert),
            vision_neck=dict(type="Linear", in_features=768, out_features=256),
            text_neck=dict(type="Linear", in_features=768, out_features=256),
            head=dict(type="ITCHead", embed_dim=256),
            multimodal_head=dict(type="ITMHead", hidden_size=768, with_pooler=False),
            topk=256,
            max_txt_len=35,
            negative_all_rank=False,  # each process has negatives of its own
        ),
    ),
    policy=dict(type="Dense"),
    task_loss=dict(type="ContrastAndMatching"),
)
