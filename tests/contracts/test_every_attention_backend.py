"""Invariant 2 and 3 on every backend of attention: packed equals masked, whatever else lies in the batch."""

import pytest
import torch

from smarttrim_mm.attention.base import ranked
from smarttrim_mm.testing import Replay, Strip, backbone_cases

HOSTS = {name.split("/")[0]: config for name, config in reversed(backbone_cases().items())}  # the first variant of each
BACKENDS = [kind.__name__ for kind in ranked() if kind().unavailable(torch.device("cpu"), torch.float32) is None]


def mixed(model, inputs):
    """Decisions with every, some and no token, and with every, one, some and no head, in one batch."""
    replay = Replay(model.trace(inputs, "masked", policy=Strip())[1])
    for grids in replay.grids.values():
        for name, grid in grids.items():
            grids[name] = torch.rand(grid.shape) < torch.linspace(-0.2, 1.2, len(grid)).unsqueeze(1)
    for heads in replay.heads.values():
        for name, grid in heads.items():
            on = torch.rand(grid.shape) < 0.6
            for row, choice in (
                (0, torch.zeros(grid.shape[1])),
                (-1, torch.ones(grid.shape[1])),
                (1, torch.arange(grid.shape[1]) == 1),
            ):
                on[row % len(on)] = choice.bool()
            heads[name] = on[torch.randperm(len(on))]
    return replay


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("attention", BACKENDS)
def test_packed_equals_masked(build, inputs_of, host, attention):
    model = build(host, {"type": "Dense"}, attention=attention)
    inputs = inputs_of(model)
    with torch.no_grad():
        replay = mixed(model, inputs)
        masked, record = model.trace(inputs, "masked", policy=replay)
        packed, _ = model.trace(inputs, "packed", policy=replay)
        torch.testing.assert_close(packed, masked, atol=1e-4, rtol=0)
        for samples in map(torch.tensor, ([2], [3, 1])):
            some, _ = model.trace(inputs.select(samples), "packed", policy=Replay(record, samples))
            torch.testing.assert_close(some, packed[samples], atol=1e-4, rtol=0)
