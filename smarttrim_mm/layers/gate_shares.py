"""What each gate of a pass let through: of the tokens that came to it, and of its heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.structures import Layout


@dataclass(frozen=True)
class GateShares:
    """Shares of one pass, a column for each gate that had something to decide on.

    Attributes:
        places: Names as a training logs them: ``'kept/<step>/<stream>'``, ``'heads/<step>/<attention>'``; and
            ``'within/<step>/<stream>'`` of tokens between attention and MLP.
        means: What the gates let through, in 0-1, mean over instances, [len(places)].
        spreads: Its standard deviation over instances, likewise.
        instances: Instances for which there was something to decide on, likewise; 0: ``means`` and ``spreads`` say nothing.
    """

    places: tuple[str, ...]
    means: Tensor
    spreads: Tensor
    instances: Tensor

    def on_host(self) -> dict[str, tuple[float, float, int]]:
        """By place mean, spread and instances, without gates that had nothing to decide on; one read from the device."""
        rows = torch.stack([self.means, self.spreads, self.instances], 1).tolist() if self.places else []
        return {name: (row[0], row[1], int(row[2])) for name, row in zip(self.places, rows, strict=True) if row[2] > 0}


@torch.no_grad()
def gate_shares(record: TrimRecord) -> GateShares:
    """Measures the gates of the record's policy: of tokens before each layer and within it, and of heads.

    A token gate's share is of the tokens that came to it, protected ones left out: 0 is a gate that leaves protected tokens
    only, 1 one that drops nothing, wherever in the model it lies. Nothing is read from the device.

    Args:
        record: Of a pass.
    """
    columns = {}
    floors: dict[int, Tensor] = {}  # layers of a stage share their mask of protected tokens
    for entry in record.steps:
        streams, attentions = record.policy.trims(entry.step)
        for name in sorted(streams & entry.tokens.keys()):
            floor = _floor(entry.before[name], floors)
            came, went = (layout.counts() - floor for layout in (entry.before[name], entry.tokens[name]))
            columns[f"kept/{entry.step.name}/{name}"] = _measure(went / came.clamp(min=1), came > 0)
        for name in sorted(record.policy.reduces(entry.step) & entry.after.keys()):
            floor = _floor(entry.tokens[name], floors)
            came, went = (layout.counts() - floor for layout in (entry.tokens[name], entry.after[name]))
            columns[f"within/{entry.step.name}/{name}"] = _measure(went / came.clamp(min=1), came > 0)
        for name in sorted(attentions & entry.heads.keys()):
            on = entry.heads[name].float().mean(1)
            columns[f"heads/{entry.step.name}/{name}"] = _measure(on, torch.ones_like(on, dtype=torch.bool))
    table = torch.stack(list(columns.values()), 1) if columns else torch.zeros(3, 0)
    return GateShares(tuple(columns), *table)


def _floor(layout: Layout, known: dict[int, Tensor]) -> Tensor:
    key = id(layout.protected)
    if key not in known:
        known[key] = layout.floor()
    return known[key]


def _measure(shares: Tensor, decided: Tensor) -> Tensor:
    """Mean and standard deviation of the shares [B] of instances that were decided on, and the number of these: [3]."""
    number = decided.sum()
    mean = (shares * decided).sum() / number.clamp(min=1)
    spread = ((shares - mean).square() * decided).sum() / number.clamp(min=1)
    return torch.stack([mean, spread.sqrt(), number.to(mean.dtype)])
