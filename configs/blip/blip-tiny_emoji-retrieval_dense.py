# mmpretrain's BlipRetrieval at a size that a CPU trains, on emoji pictures and their names from a random start.
# python tools/train.py configs/blip/blip-tiny_emoji-retrieval_dense.py
_base_ = [
    "../_base_/datasets/noto_emoji.py",
    "../_base_/schedules/quickstart.py",
    "../_base_/default_runtime.py",
]

bert = dict(
    vocab_size=1441,  # the tokenizer's 1,439 and BLIP's [DEC] and [ENC]
    bos_token_id=2,
    pad_token_id=0,
    eos_token_id=3,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=24,
    initializer_range=0.05,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    layer_norm_eps=1e-12,
    add_type_embeddings=False,
    add_cross_attention=True,
    encoder_width=128,
)
model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="MMPretrainBackbone",
        model=dict(
            type="BlipRetrieval",
            vision_backbone=dict(
                type="VisionTransformer",
                arch=dict(embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512),
                img_size=72,
                patch_size=9,
                out_type="raw",
            ),
            text_backbone=dict(type="XBertEncoder", med_config=bert),
            vision_neck=dict(type="Linear", in_features=128, out_features=128),
            text_neck=dict(type="Linear", in_features=64, out_features=128),
            head=dict(type="ITCHead", embed_dim=128, queue_size=256, alpha=0.0),
            multimodal_head=dict(type="ITMHead", hidden_size=64, with_pooler=False),
            momentum=0.99,
        ),
    ),
    policy=dict(type="Dense"),
    task_loss=dict(type="ContrastAndMatching"),
)
del bert

max_iters = 2000
train_cfg = dict(max_iters=max_iters, val_interval=500)
val_cfg = dict(type="AllPairsValLoop", top_k=16)
test_cfg = dict(type="AllPairsTestLoop", top_k=16)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, T_max=max_iters - 100, eta_min=0.0),
]
# The temperature is a bare parameter, which nothing bounds: at the rate of the rest it falls to nothing within 70 steps.
# mmpretrain's model and its head share it.
optim_wrapper = dict(
    paramwise_cfg=dict(bypass_duplicate=True, custom_keys={"host.temp": dict(lr_mult=0.02, decay_mult=0.0)}),
)
