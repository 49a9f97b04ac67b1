"""Invariant 3: what else lies in the batch changes nothing."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad

from smarttrim_mm.testing import Replay, kept_grids, pairs_of

SUBSETS = [[0], [2], [5], [3, 1], [4, 4], [5, 4, 3, 2, 1, 0]]


def assert_same_decisions(record, other, samples):
    pairs = pairs_of(record, samples)
    for name, grid in kept_grids(record).items():
        grid, own = grid[pairs], kept_grids(other)[name]
        width = own.shape[1]  # a batch of short texts is padded less
        assert torch.equal(grid[:, :width], own) and not grid[:, width:].any(), name


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_replayed_decisions(build, inputs_of, backbone, policy, kind):
    model = build(backbone, policy)
    inputs = inputs_of(model)
    with torch.no_grad():
        model.policy.train()
        _, record = model.trace(inputs, "masked")
        logits, record = model.trace(inputs, kind, policy=Replay(record))
        for samples in map(torch.tensor, SUBSETS):
            some, other = model.trace(inputs.select(samples), kind, policy=Replay(record, samples))
            torch.testing.assert_close(some, logits[samples], atol=1e-4, rtol=0)
            assert_same_decisions(record, other, samples)


def test_free_running(build, inputs_of, backbone, policy):
    """Decisions could flip where a margin is below 1e-5; with these weights and inputs none is so small."""
    model = build(backbone, policy)
    inputs = inputs_of(model)
    with torch.no_grad():
        logits, record = model.trace(inputs)
        for samples in map(torch.tensor, SUBSETS):
            some, other = model.trace(inputs.select(samples))
            assert_same_decisions(record, other, samples)
            torch.testing.assert_close(some, logits[samples], atol=1e-4, rtol=0)
            if record.pairs_per_sample > 1:
                continue  # an unshared text is counted with each of its images
            torch.testing.assert_close(other.multiply_adds(), record.multiply_adds()[samples])
            torch.testing.assert_close(other.dense_multiply_adds(), record.dense_multiply_adds()[samples])
            torch.testing.assert_close(other.least_multiply_adds(), record.least_multiply_adds()[samples])


def test_padding_is_never_read(build, inputs_of, backbone, policy):
    """Wider padding, and words behind the end of a text, change nothing and cost nothing."""
    model = build(backbone, policy)
    inputs = inputs_of(model)
    wider = replace(
        inputs,
        input_ids=pad(inputs.input_ids.masked_fill(~inputs.text_mask, 5), (0, 3), value=6),
        text_mask=pad(inputs.text_mask, (0, 3)),
        special_mask=pad(inputs.special_mask, (0, 3), value=True),
    )
    with torch.no_grad():
        for kind in ("masked", "packed"):
            (logits, record), (same, padded) = model.trace(inputs, kind), model.trace(wider, kind)
            torch.testing.assert_close(same, logits, atol=1e-4, rtol=0)
            for compute in ("multiply_adds", "dense_multiply_adds", "least_multiply_adds"):
                torch.testing.assert_close(getattr(padded, compute)(), getattr(record, compute)())
        torch.testing.assert_close(model.host_forward(wider), model.host_forward(inputs))
