# mmpretrain's BlipVQA at a size that a CPU trains, on easy-VQA from a random start.
# python tools/train.py configs/blip/blip-tiny_easy-vqa_dense.py
_base_ = [
    "../_base_/datasets/blip_easy_vqa.py",
    "../_base_/schedules/quickstart.py",
    "../_base_/default_runtime.py",
]

bert = dict(
    vocab_size=34,
    bos_token_id=0,
    pad_token_id=1,
    eos_token_id=2,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=18,
    initializer_range=0.07,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    layer_norm_eps=1e-12,
    add_type_embeddings=False,
    add_cross_attention=True,
)
model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="MMPretrainBackbone",
        model=dict(
            type="BlipVQA",
            vision_backbone=dict(
                type="VisionTransformer",
                arch=dict(embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512),
                img_size=64,
                patch_size=8,
                out_type="raw",
            ),
            multimodal_backbone=dict(type="XBertEncoder", med_config=dict(bert, encoder_width=128)),
            head=dict(
                type="VQAGenerationHead",
                decoder=dict(type="XBertLMHeadDecoder", med_config=dict(bert, encoder_width=64)),
            ),
        ),
        answers=_base_.answers,
        tokenizer=_base_.tokenizer,
    ),
    policy=dict(type="Dense"),
    task_loss=dict(type="AnswerGeneration"),
)
del bert

max_iters = 3400
train_cfg = dict(max_iters=max_iters, val_interval=850)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, T_max=max_iters - 100, eta_min=0.0),
]
optim_wrapper = dict(paramwise_cfg=dict(bypass_duplicate=True))  # the decoder's head is its embedding
