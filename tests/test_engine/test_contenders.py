from functools import partial

import pytest
import torch

from smarttrim_mm.engine.contenders import compiled_contender, sdpa_forward
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, random_inputs


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_forward_gives_the_same_logits(small_model, batches, monkeypatch, backend):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = small_model({"type": "Dense"})
    first, other, _ = batches(model)
    with torch.inference_mode():
        logits, record = compiled_contender(model, first)(other)
        assert record is None
        assert torch.allclose(logits, model.host_forward(other), atol=1e-4)


def test_what_does_not_compile_is_an_error(small_model, batches, monkeypatch):
    model = small_model({"type": "Dense"})

    def refuse(function):
        def run(inputs):
            raise RuntimeError("no C++ compiler\nat all")

        return run

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(RuntimeError, match=r"--compile: .* METER's forward here \(RuntimeError: no C\+\+ compiler\)"):
        compiled_contender(model, batches(model)[0])


def test_sdpa_is_in_force_within_the_forward_alone(monkeypatch):
    backbone = {**backbone_cases()["LavisBackbone/blip_vqa text first"], "num_candidates": 3}
    model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": {"type": "Dense"}}).eval()
    inputs, seen = random_inputs(model.backbone.input_format, [9, 6]), []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "smarttrim_mm.backbones.lavis_sdpa.scaled_dot_product_attention", lambda *a, **k: seen.append(1) or attend(*a, **k)
    )
    with torch.inference_mode():
        expected = model.host_forward(inputs)
        assert not seen
        found = sdpa_forward(model)(inputs)
        assert seen
    finite = ~expected.isneginf()
    assert torch.allclose(found[finite], expected[finite], atol=1e-3)
