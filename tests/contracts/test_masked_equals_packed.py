"""Invariant 2: both executions of the same decisions agree."""

import pytest
import torch

from smarttrim_mm.engine.rivals import pad_to_longest
from smarttrim_mm.testing import Replay, Strip, kept_grids


def test_free_running(build, inputs_of, backbone, policy, batch):
    """At inference both decide alike and, so, answer alike."""
    model = build(backbone, policy)
    inputs = inputs_of(model, **batch)
    with torch.no_grad():
        (masked, in_place), (packed, left_out) = model.trace(inputs, "masked"), model.trace(inputs, "packed")
    for name, grid in kept_grids(in_place).items():
        assert torch.equal(kept_grids(left_out)[name], grid), name
    torch.testing.assert_close(packed, masked, atol=1e-4, rtol=0)
    torch.testing.assert_close(in_place.multiply_adds(), left_out.multiply_adds())
    torch.testing.assert_close(in_place.dense_multiply_adds(), left_out.dense_multiply_adds())


def test_padded_to_the_longest(build, inputs_of, backbone, policy):
    """The execution that benchmarks compare with decides and answers alike, whatever a policy drops, merges and skips."""
    model = build(backbone, policy)
    inputs = inputs_of(model)
    with torch.no_grad():
        packed, left_out = model.trace(inputs, "packed")
        padded, compacted = pad_to_longest(model, model.policy, inputs)
    for name, grid in kept_grids(left_out).items():
        assert torch.equal(kept_grids(compacted)[name], grid), name
    torch.testing.assert_close(padded, packed, atol=1e-4, rtol=0)
    torch.testing.assert_close(compacted.multiply_adds(), left_out.multiply_adds())


def test_replayed_decisions(build, inputs_of, backbone, policy):
    """Decisions as training samples them, replayed in both executions."""
    model = build(backbone, policy)
    inputs = inputs_of(model)
    with torch.no_grad():
        model.policy.train()  # the policy alone: dropout would differ
        masked, decided = model.trace(inputs, "masked")
        packed, replayed = model.trace(inputs, "packed", policy=Replay(decided))
        again, _ = model.trace(inputs, "masked", policy=Replay(replayed))
    for name, grid in kept_grids(decided).items():
        assert torch.equal(kept_grids(replayed)[name], grid), name
    torch.testing.assert_close(packed, masked, atol=1e-4, rtol=0)
    torch.testing.assert_close(again, masked, atol=1e-4, rtol=0)


def test_gradients_agree(build, inputs_of, backbone, policy):
    """With decisions fixed, gradients are the same through either execution."""
    model = build(backbone, policy)
    inputs = inputs_of(model)
    replay = Replay(model.trace(inputs, "masked")[1])
    gradients = []
    for kind in ("masked", "packed"):
        model.zero_grad()
        model.trace(inputs, kind, policy=replay)[0].square().sum().backward()
        # what packed execution never multiplied has no gradient at all, and masked execution one of zeros
        gradients.append(
            {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.backbone.named_parameters()}
        )
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_mixed_decisions(build, inputs_of, backbone, batch):
    """Instances with every, some and no token and head lie in one batch."""
    model = build(backbone, {"type": "Dense"})
    inputs = inputs_of(model, **batch)
    with torch.no_grad():
        replay = Replay(model.trace(inputs, "masked", policy=Strip())[1])
        for grids in (*replay.grids.values(), *replay.heads.values()):
            for name, grid in grids.items():
                share = torch.linspace(-0.2, 1.2, len(grid)) if len(grid) > 1 else torch.tensor([0.5])
                grids[name] = torch.rand(grid.shape) < share.unsqueeze(1)
        masked, packed = (model.trace(inputs, kind, policy=replay)[0] for kind in ("masked", "packed"))
    torch.testing.assert_close(packed, masked, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_mixed_precision(build, inputs_of, backbone, policy, kind):
    """Under autocast both executions run, alone and in a batch, and stay near single precision on the same decisions."""
    model = build(backbone, policy)
    inputs = inputs_of(model)
    with torch.no_grad():
        exact, record = model.trace(inputs, "masked")
        for samples in (torch.arange(6), torch.tensor([0])):
            with torch.autocast("cpu", torch.bfloat16):
                logits, _ = model.trace(inputs.select(samples), kind, policy=Replay(record, samples))
                model.trace(inputs.select(samples), kind)
            torch.testing.assert_close(logits.float(), exact[samples], atol=0.1, rtol=0.1)


def test_inference_mode_leaves_nothing_behind(build, inputs_of, backbone, policy):
    """Nothing that a pass without gradients keeps for later stops a pass with gradients."""
    model = build(backbone, policy)
    inputs = inputs_of(model)
    with torch.inference_mode():
        model.trace(inputs)
    model.trace(inputs)[0].sum().backward()
