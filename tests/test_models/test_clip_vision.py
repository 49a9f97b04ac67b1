import pytest
import torch

from smarttrim_mm.models.clip_vision import ClipVision
from smarttrim_mm.testing import excite


@pytest.fixture
def trunk():
    trunk = ClipVision(image_size=32, patch_size=8, width=24, layers=2, heads=3, mlp_ratio=2.0)
    excite(trunk)
    return trunk


def test_it_is_clip(trunk):
    """Against another implementation of CLIP's vision transformer, with the same weights under its names."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8
    )
    other = CLIPVisionModel(config).eval().vision_model
    weights = {}
    for key, value in trunk.state_dict().items():
        if "in_proj" in key:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                weights[key.replace("in_proj_", f"{part}_proj.")] = rows
        else:
            weights[key] = value
    names = {
        "transformer.resblocks": "encoder.layers", ".attn.": ".self_attn.", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
        "c_fc": "fc1", "c_proj": "fc2", "ln_pre": "pre_layrnorm", "ln_post": "post_layernorm",
        "conv1": "embeddings.patch_embedding", "positional_embedding": "embeddings.position_embedding.weight",
    }  # fmt: skip
    for ours, theirs in names.items():
        weights = {key.replace(ours, theirs): value for key, value in weights.items()}
    weights = {("embeddings." + key if key == "class_embedding" else key): value for key, value in weights.items()}
    other.load_state_dict(weights)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = other.post_layernorm(other(images).last_hidden_state)
        torch.testing.assert_close(trunk(images), expected, atol=1e-5, rtol=1e-5)


def test_shapes(trunk):
    images = torch.randn(2, 3, 32, 32)
    assert trunk.embed(images).shape == trunk(images).shape == (2, 17, 24)
    assert trunk.blocks[0].mlp.c_fc.out_features == 48 and len(trunk.blocks) == 2


def test_untrained_weights_have_clips_scale():
    trunk = ClipVision(image_size=32, patch_size=8, width=256, layers=8, heads=4)
    assert trunk.class_embedding.std().item() == pytest.approx(1 / 16, rel=0.2)
    assert trunk.blocks[0].attn.in_proj_weight.std().item() == pytest.approx(1 / 16, rel=0.02)
    assert trunk.blocks[0].mlp.c_proj.weight.std().item() == pytest.approx(1 / 64, rel=0.02)
    assert not trunk.blocks[0].attn.in_proj_bias.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 30}, "image_size is 30, which patch_size 8 does not divide"),
        ({"heads": 5}, "width is 24, which 5 heads do not divide"),
    ],
)
def test_impossible_sizes(changes, message):
    with pytest.raises(ValueError, match=message):
        ClipVision(**{"image_size": 32, "patch_size": 8, "width": 24, "layers": 1, "heads": 3, **changes})


def test_images_of_another_size(trunk):
    with pytest.raises(ValueError, match=r"images are \(16, 16\) pixels; expected 32 by 32"):
        trunk(torch.randn(1, 3, 16, 16))
