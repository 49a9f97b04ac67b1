"""What tests of backbones and policies need: cases of everything registered, random inputs, an independent count of compute.

The contract tests walk the registries through this module, so that a new backbone or policy is tested without editing a test.
Nothing here is imported by the package itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smarttrim_mm.layers.record import Merged, StepRecord, TrimRecord
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.registry import MODELS, POLICIES
from smarttrim_mm.structures import Decision, Evidence, Merge, Streams, TokenStream
from smarttrim_mm.utils.flop_count import count_multiply_adds
from smarttrim_mm.utils.random_inputs import random_inputs

__all__ = [
    "Replay",
    "Strip",
    "backbone_cases",
    "count_multiply_adds",
    "excite",
    "kept_grids",
    "pairs_of",
    "policy_cases",
    "random_inputs",
]


def backbone_cases() -> dict[str, dict[str, Any]]:
    """Small configs of every registered backbone, by ``'<type>/<variant>'``.

    A class of ``MODELS`` is a backbone if it has ``steps`` and ``host_forward``.

    Raises:
        ValueError: If a backbone offers no ``small_configs`` or no ``input_format``.
    """
    MODELS.import_from_location()
    cases = {}
    for name, cls in sorted(MODELS.module_dict.items()):
        if not (hasattr(cls, "steps") and hasattr(cls, "host_forward")):
            continue
        if not (hasattr(cls, "small_configs") and hasattr(cls, "input_format")):
            raise ValueError(f"{name} is a backbone without small_configs() or input_format; add both, as METER has them")
        cases.update({f"{name}/{variant}": config for variant, config in cls.small_configs().items()})
    return cases


def policy_cases() -> dict[str, dict[str, Any]]:
    """Example configs of every registered policy, by ``'<type>/<variant>'``."""
    POLICIES.import_from_location()
    return {
        f"{name}/{variant}": {"type": name, **config}
        for name, cls in sorted(POLICIES.module_dict.items())
        for variant, config in cls.example_configs().items()
    }


@torch.no_grad()
def excite(module: nn.Module, seed: int = 0) -> None:
    """Gives every parameter a random value of a size that matters, so that no error hides behind small or zero weights."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise * parameter.shape[1:].numel() ** -0.5)
        else:
            parameter.add_(0.2 * noise)


class Replay(Policy):
    """Repeats the decisions of a record, in either execution.

    Args:
        record: What was decided.
        samples: Which samples of the record the new batch holds, long [g], unshared; None: the same batch.
    """

    def __init__(self, record: TrimRecord, samples: Tensor | None = None) -> None:
        super().__init__(steps=[])
        pairs = None if samples is None else pairs_of(record, samples)
        self.grids: dict[str, dict[str, Tensor]] = {}
        self.heads: dict[str, dict[str, Tensor]] = {}
        self.run: dict[str, dict[str, Tensor]] = {}
        self.after: dict[str, dict[str, Tensor]] = {}
        self.merged: dict[str, dict[str, Merged]] = {}
        for entry in record.steps:
            rows = _rows(entry, pairs)
            self.grids[entry.step.name] = {name: layout.kept_grid()[rows] for name, layout in entry.tokens.items()}
            self.heads[entry.step.name] = {name: (gate > 0)[rows] for name, gate in entry.heads.items()}
            self.run[entry.step.name] = {name: (gate > 0)[rows] for name, gate in entry.run.items()}
            self.after[entry.step.name] = {name: layout.kept_grid()[rows] for name, layout in entry.after.items()}
            self.merged[entry.step.name] = {
                name: Merged(merged.into[rows], merged.weight[rows], merged.sized) for name, merged in entry.merged.items()
            }

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        keep = {}
        for name, stream in streams.items():
            width = stream.layout.kept_grid().shape[1]  # a smaller batch may be padded less
            keep[name] = stream.layout.from_grid(_of_instances(self.grids[step.name][name], stream)[:, :width])
        first = next(iter(streams.values()))
        heads = {name: _of_instances(grid, first) for name, grid in self.heads[step.name].items()}
        run = {name: _of_instances(gate, first) for name, gate in self.run[step.name].items()}
        return Decision(keep=keep, heads=heads, run=run)

    def reduces(self, step: LayerStep) -> frozenset[str]:
        return frozenset(self.after[step.name])

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        keep, merge = {}, {}
        for name, grid in self.after[step.name].items():
            layout = streams[name].layout
            width = layout.kept_grid().shape[1]
            keep[name] = layout.from_grid(_of_instances(grid, streams[name])[:, :width])
            merged = self.merged[step.name].get(name)
            if merged is not None:
                into, weight = (_of_instances(each, streams[name])[:, :width] for each in (merged.into, merged.weight))
                merge[name] = Merge(layout.from_grid(into), layout.from_grid(weight), merged.sized)
        return Decision(keep=keep, merge=merge)


def _of_instances(grid: Tensor, stream: TokenStream) -> Tensor:
    """One row an instance: where the pairs of a sample run as one instance, the first pair's."""
    return grid[:: max(1, len(grid) // stream.layout.batch_size)]


def _rows(entry: StepRecord, pairs: Tensor | None) -> Tensor | slice:
    if pairs is None:
        return slice(None)
    return pairs if entry.rows is None else entry.rows[pairs]


class Strip(Policy):
    """Keeps nothing that another policy may cut: neither tokens nor heads; gates carry gradients.

    Args:
        policy: Whose streams, attentions and overhead these are; None: everything is cut, for free.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        super().__init__(steps=[])
        self.policy = policy

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        cut, attentions = self.trims(step)
        views = [view for layer in step.layers.values() for view in layer.attentions if view.name in attentions]
        first = next(iter(streams.values()))
        return Decision(
            keep={name: _zeros(streams[name].x.shape[:-1]) for name in cut},
            heads={view.name: _zeros((first.layout.batch_size, view.heads)) for view in views},
            run={part: _zeros((first.layout.batch_size,)) for part in self.skips(step)},
        )

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        if self.policy is not None:
            return self.policy.trims(step)
        return frozenset(step.streams()), frozenset(v.name for layer in step.layers.values() for v in layer.attentions)

    def reduces(self, step: LayerStep) -> frozenset[str]:
        return frozenset() if self.policy is None else self.policy.reduces(step)

    def skips(self, step: LayerStep) -> frozenset[str]:
        return frozenset() if self.policy is None else self.policy.skips(step)

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        return Decision(keep={name: _zeros(streams[name].x.shape[:-1]) for name in self.reduces(step)})

    def reads(self, step: LayerStep) -> frozenset[str]:
        return frozenset() if self.policy is None else self.policy.reads(step)

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        return 0.0 if self.policy is None else self.policy.multiply_adds(step, counts)


def _zeros(shape: Sequence[int]) -> Tensor:
    return torch.zeros(shape, requires_grad=True)


def pairs_of(record: TrimRecord, samples: Tensor) -> Tensor:
    """Indices of the pairs of some samples, long [g pairs_per_sample]."""
    return (samples[:, None] * record.pairs_per_sample + torch.arange(record.pairs_per_sample)).flatten()


def kept_grids(record: TrimRecord) -> dict[str, Tensor]:
    """Per ``'<step>/<stream>'`` the kept positions, and per ``'<step>/<attention>'`` the heads that are on, per pair, bool."""
    grids: dict[str, Tensor] = {}
    for entry in record.steps:
        rows = slice(None) if entry.rows is None else entry.rows
        for name, layout in entry.tokens.items():
            grids[f"{entry.step.name}/{name}"] = layout.kept_grid()[rows]
        for name, gate in entry.heads.items():
            grids[f"{entry.step.name}/{name}"] = (gate > 0)[rows]
        for name, gate in entry.run.items():
            grids[f"{entry.step.name}/{name} run"] = (gate > 0)[rows].unsqueeze(1)
        for name, layout in entry.after.items():
            grids[f"{entry.step.name}/{name} after"] = layout.kept_grid()[rows]
    return grids
