"""A LAVIS model with scaled_dot_product_attention gives what it gives without."""

import pytest
import torch
from torch.nn import functional

from smarttrim_mm.backbones import lavis_sdpa
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, excite, random_inputs

CASES = {name.partition("/")[2]: case for name, case in backbone_cases().items() if name.startswith("LavisBackbone/")}
BATCHES = {"padded texts": ((9, 4, 2, 7), (0, 0, 1, 1)), "one pair": ((5,), None)}


@pytest.fixture
def build():
    def make(name, **changes):
        model = MODELS.build({"type": "TrimmedVLM", "backbone": {**CASES[name], **changes}, "policy": {"type": "Dense"}}).eval()
        excite(model.backbone)
        return model

    return make


@pytest.fixture
def calls(monkeypatch) -> list:
    """The queries that reach torch's function through this file."""
    seen = []

    def attend(q, *args, **kwargs):
        seen.append(q.shape)
        return functional.scaled_dot_product_attention(q, *args, **kwargs)

    monkeypatch.setattr(lavis_sdpa, "scaled_dot_product_attention", attend)
    return seen


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_the_host_is_the_host(build, calls, name, batch):
    model = build(name)
    inputs = random_inputs(model.backbone.input_format, *BATCHES[batch])
    own = model.host_forward(inputs)
    assert not calls
    with_sdpa = model.backbone.with_sdpa()
    with with_sdpa:
        found = model.host_forward(inputs)
    torch.testing.assert_close(found, own, atol=1e-5, rtol=1e-4)
    layers = [layer for stage in model.backbone.steps.values() for step in stage for layer in step.layers.values()]
    # CLIP's layers have torch's own, which calls it elsewhere
    attentions = [view for layer in layers if not hasattr(layer.owner, "attn_mask") for view in layer.attentions]
    assert len(calls) >= len(attentions) > 0
    count = len(calls)
    assert torch.equal(model.host_forward(inputs), own)  # and is LAVIS's own again
    assert len(calls) == count
    with with_sdpa:
        model.host_forward(inputs)
    assert len(calls) == 2 * count


@torch.inference_mode()
def test_only_this_model_is_changed_and_an_error_changes_it_back(build, calls):
    model, other = build("blip_nlvr shared images"), build("blip_nlvr shared images")
    inputs = random_inputs(model.backbone.input_format, [5])
    with pytest.raises(RuntimeError, match="stop"), model.backbone.with_sdpa():
        other.host_forward(inputs)
        raise RuntimeError("stop")
    model.host_forward(inputs)
    assert not calls
    assert not any("forward" in vars(module) for module in model.modules())


@torch.inference_mode()
def test_a_causal_mask_with_padding_and_a_cache(build):
    """The decoder: its own mask, cross-attention with padding, and keys and values of earlier tokens."""
    model = build("blip_vqa text first")
    decoder, width = model.backbone.host.text_decoder, model.backbone.text_config.hidden_size
    ids, real = torch.randint(3, 100, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    read = {
        "encoder_hidden_states": torch.randn(2, 5, width),
        "encoder_attention_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2]),
    }

    def run(begin: int, past=None):
        out = decoder(ids[:, begin:], attention_mask=real, past_key_values=past, use_cache=True, return_dict=True, **read)
        return out.logits, out.past_key_values

    def prefix():
        return decoder(ids[:, :3], attention_mask=real[:, :3], use_cache=True, return_dict=True, **read).past_key_values

    own, own_later = run(0), run(3, prefix())
    with model.backbone.with_sdpa():
        found, later = run(0), run(3, prefix())
    for one, other in ((own, found), (own_later, later)):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(later[0][0], found[0][0, 3:], atol=1e-5, rtol=1e-4)


def test_what_it_cannot_give_is_refused(build):
    model = build("blip_vqa text first")
    attention = model.backbone.host.text_encoder.encoder.layer[0].attention.self
    block = model.backbone.host.visual_encoder.blocks[0].attn
    x, image = torch.randn(1, 3, 32), torch.randn(1, 3, 24)
    with model.backbone.with_sdpa():
        with pytest.raises(ValueError, match="output_attentions"):
            attention(x, output_attentions=True)
        with pytest.raises(ValueError, match="head_mask"):
            attention(x, head_mask=torch.ones(4))
        with pytest.raises(ValueError, match="register_hook"):
            block(image, register_hook=True)
        attention.dropout.p = 0.25
        attention(x)
        with pytest.raises(ValueError, match=r"dropout of the attention is 0\.25"):
            attention.train()(x)
