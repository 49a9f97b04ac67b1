# The tiny METER for 192 px: 144 patches of 16 px in 4 vision blocks of width 96; 2 text layers and 2 fusion layers of width 64,
# so that the place that a question names can be looked up before its picture is read.
_base_ = "meter_tiny.py"

model = dict(
    backbone=dict(
        vision=dict(image_size=192, patch_size=16, width=96),
        text=dict(vocab_size=38, max_position_embeddings=22),
        fusion=dict(num_hidden_layers=2),
    ),
)
