# A METER of 1.1 M parameters for 64 px images: 4 vision blocks of width 128; 2 text layers and 1 fusion layer of width 64.
_bert = dict(num_attention_heads=4, intermediate_size=256, initializer_range=0.07)
model = dict(
    type="TrimmedVLM",
    backbone=dict(
        type="METER",
        num_classes=13,
        vision=dict(image_size=64, patch_size=8, width=128, layers=4, heads=4),
        text=dict(
            **_bert,
            vocab_size=31,
            hidden_size=64,
            num_hidden_layers=2,
            max_position_embeddings=18,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        fusion=dict(
            **_bert,
            hidden_size=64,
            num_hidden_layers=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
    ),
    policy=dict(type="Dense"),
)
