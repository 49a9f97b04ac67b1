"""Invariant 6: what speaks for a stream, and the special tokens, outlive any decision."""

import pytest
import torch

from smarttrim_mm.testing import Strip


@pytest.mark.parametrize("kind", ["masked", "packed"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_policy_that_drops_everything(build, inputs_of, backbone, batch, kind, training):
    model = build(backbone, {"type": "Dense"}).train(training)
    inputs = inputs_of(model, **batch)
    logits, record = model.trace(inputs, kind, policy=Strip())
    for entry in record.steps:
        for name, layout in entry.tokens.items():
            expected = torch.zeros_like(layout.kept_grid())
            layer = entry.step.layers.get(name)
            queries = layer.first or 0 if layer else 0
            expected[:, : max(queries, 1)] = True
            if name == "text":
                texts = inputs if len(expected) == len(inputs.input_ids) else inputs.unshared()
                expected[:, queries:] |= texts.special_mask & texts.text_mask
            assert torch.equal(layout.kept_grid(), expected), f"{entry.step.name}/{name}"
            assert torch.equal(layout.counts(), layout.floor())
    assert torch.isfinite(logits).all()
    assert all((ratio == 0).all() for ratio in record.heads().values())
    logits.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.backbone.parameters() if p.grad is not None)


def test_both_executions_agree_on_what_is_left(build, inputs_of, backbone, batch):
    model = build(backbone, {"type": "Dense"})
    inputs = inputs_of(model, **batch)
    with torch.no_grad():
        masked, packed = (model.trace(inputs, kind, policy=Strip())[0] for kind in ("masked", "packed"))
    torch.testing.assert_close(packed, masked, atol=1e-4, rtol=0)


def test_any_policy_at_its_strongest(build, inputs_of, backbone, policy):
    model = build(backbone, policy)
    if model.policy.knob is not None:
        model.policy.set_knob(model.policy.knob.high)
    inputs = inputs_of(model)
    with torch.no_grad():
        (masked, record), (packed, _) = (model.trace(inputs, kind) for kind in ("masked", "packed"))
    assert torch.isfinite(masked).all()
    torch.testing.assert_close(packed, masked, atol=1e-4, rtol=0)
    for entry in record.steps:
        for name, layout in entry.tokens.items():
            assert (layout.kept_grid() | ~layout.protected).all(), f"{entry.step.name}/{name}"
