"""mmpretrain's BLIPs with scaled_dot_product_attention in their BERTs give what they give without."""

import pytest
import torch
from torch.nn import functional

from smarttrim_mm.backbones import lavis_sdpa
from smarttrim_mm.backbones.mmpretrain_blip import MMPretrainBlip
from smarttrim_mm.backbones.mmpretrain_grounding import BlipGrounding
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, excite, random_inputs

CASES = {
    name.partition("/")[2]: case
    for name, case in backbone_cases().items()
    if name.startswith("MMPretrainBackbone/Blip") and BlipGrounding.__name__ not in name
}


@pytest.fixture
def calls(monkeypatch) -> list:
    """The queries that reach torch's function from a BERT."""
    seen = []

    def attend(q, *args, **kwargs):
        seen.append(q.shape)
        return functional.scaled_dot_product_attention(q, *args, **kwargs)

    monkeypatch.setattr(lavis_sdpa, "scaled_dot_product_attention", attend)
    return seen


def built(name):
    model = MODELS.build({"type": "TrimmedVLM", "backbone": CASES[name], "policy": {"type": "Dense"}}).eval()
    assert isinstance(model.backbone, MMPretrainBlip)
    excite(model.backbone)
    return model


def test_every_task_is_here():
    assert {name.partition(" ")[0] for name in CASES} == {"BlipVQA", "BlipNLVR", "BlipRetrieval", "BlipCaption"}


@pytest.mark.parametrize("lengths", [[5], [9, 4, 2, 7]], ids=["one", "padded"])
@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_the_host_is_the_host(calls, name, lengths):
    model = built(name)
    inputs = random_inputs(model.backbone.input_format, lengths, [0] if len(lengths) == 1 else [0, 0, 1, 1])
    own = model.host_forward(inputs)
    with_sdpa = model.backbone.with_sdpa()
    assert not calls
    with with_sdpa:
        found = model.host_forward(inputs)
    torch.testing.assert_close(found, own, atol=1e-5, rtol=1e-4)
    names = [name for name, module in model.backbone.host.named_modules() if type(module).__name__ == "BertSelfAttention"]
    assert len(calls) >= len([name for name in names if "_m." not in name]) > 0  # momentum copies are not run
    count = len(calls)
    assert torch.equal(model.host_forward(inputs), own)  # and is mmpretrain's own again
    assert len(calls) == count


@torch.inference_mode()
def test_dropout_in_training_is_refused():
    model = built("BlipNLVR shared images")
    attention = model.backbone.host.multimodal_backbone.encoder.layer[0].attention.self
    attention.dropout.p = 0.25
    with model.backbone.with_sdpa():
        attention(torch.randn(1, 3, 32))
        with pytest.raises(ValueError, match=r"dropout of the attention is 0\.25"):
            attention.train()(torch.randn(1, 3, 32))
