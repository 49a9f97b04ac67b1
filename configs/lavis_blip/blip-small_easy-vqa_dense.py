# LAVIS's BLIP for VQA at a size that a CPU trains, on easy-VQA from a random start. Needs LAVIS (docs/lavis.md).
# python tools/train.py configs/lavis_blip/blip-small_easy-vqa_dense.py
_base_ = [
    "../_base_/datasets/blip_easy_vqa.py",
    "../_base_/schedules/quickstart.py",
    "../_base_/default_runtime.py",
]

model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="LavisBackbone",
        arch="blip_vqa",
        vision=dict(img_size=64, patch_size=8, embed_dim=128, depth=4, num_heads=4, drop_path_rate=0.0),
        text=dict(
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
        ),
        answers=_base_.answers,
        tokenizer=_base_.tokenizer,
    ),
    policy=dict(type="Dense"),
    task_loss=dict(type="AnswerGeneration"),
)

max_iters = 3400
train_cfg = dict(max_iters=max_iters, val_interval=850)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, T_max=max_iters - 100, eta_min=0.0),
]
optim_wrapper = dict(paramwise_cfg=dict(bypass_duplicate=True))  # the decoder's head is its embedding
