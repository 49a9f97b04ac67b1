# mmpretrain's BlipCaption, which writes with three beams, 2 to 20 tokens with their prompt. A config adds the tokenizer.
_base_ = "mmpretrain_blip.py"

model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="MMPretrainBackbone",
        model=dict(
            type="BlipCaption",
            vision_encoder=_base_.vision,
            decoder_head=dict(type="SeqGenerationHead", decoder=dict(type="XBertLMHeadDecoder", med_config=_base_.bert)),
            prompt="a picture of ",
            max_txt_len=20,
        ),
        generation=dict(num_beams=3, max_length=20, min_length=2),
    ),
    policy=dict(type="Dense"),
    task_loss=dict(type="AnswerGeneration", per_token=True),
)
