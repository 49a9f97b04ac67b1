# mmpretrain's BlipVQA at 480 px. As there, the loss has no label smoothing. A config adds the answers and their tokenizer.
_base_ = "mmpretrain_blip.py"

model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="MMPretrainBackbone",
        model=dict(
            type="BlipVQA",
            vision_backbone={**_base_.vision, "img_size": 480},
            multimodal_backbone=dict(type="XBertEncoder", med_config=_base_.bert),
            head=dict(
                type="VQAGenerationHead",
                decoder=dict(type="XBertLMHeadDecoder", med_config=_base_.bert),
                inference_method="rank",
            ),
        ),
    ),
    policy=dict(type="Dense"),
    task_loss=dict(type="AnswerGeneration", label_smoothing=0.0),
)
