_base_ = "meter_tiny.py"

model = dict(
    backbone=dict(
        vision=dict(image_size=192, patch_size=16, width=96, layers=4),
        text=dict(vocab_size=38, max_position_embeddings=22),
        fusion=dict(num_hidden_layers=2),
    ),
)
