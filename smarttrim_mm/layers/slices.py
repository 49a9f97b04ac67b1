"""What can be sliced off the layers of a host for good: heads of attentions, hidden units of feed-forward parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smarttrim_mm.layers.record import StepRecord, TrimRecord, attention_multiply_adds
from smarttrim_mm.layers.views import AttentionView, LayerStep, LayerView, MlpView

View = AttentionView | MlpView


@dataclass(frozen=True)
class Site:
    """The heads of an attention module, or the hidden units of a feed-forward part, wherever the model runs it.

    Attentions that share a projection (LAVIS's ALBEF for NLVR2: keys and values of two layers) are one site: a head goes from
    all of them.

    Attributes:
        name: ``'<step>/<attention>'`` or ``'<step>/<stream>.mlp'``, dots as underscores, of the first step that runs it.
        group: Its like, among which importance is standardised: ``'<stage>/<attention>'`` or ``'<stage>/<stream>.mlp'``.
        size: Heads, or units.
        views: A view of each of its modules, with the layer it is in.
    """

    name: str
    group: str
    size: int
    views: list[tuple[View, LayerView]]


@dataclass(frozen=True)
class Sites:
    """All sites of a backbone, in the order of execution.

    Attributes:
        all: The sites.
        where: Number of the site that a step runs under a name, by the names of step and :func:`parts_of`.
    """

    all: tuple[Site, ...]
    where: dict[tuple[str, str], int]

    @classmethod
    def of(cls, steps: Sequence[LayerStep]) -> Sites:
        """Finds them. A module that several steps run (BLIP's text encoder in retrieval, a Q-Former's parts) is in one site.

        Args:
            steps: The layers of the backbone.

        Raises:
            ValueError: If attentions share projections in a way that ties heads of different numbers together.
        """
        found: list[Site] = []
        where: dict[tuple[str, str], int] = {}
        owners: dict[int, int] = {}  # number of the site that a host's parameter belongs to, by its identity
        for step in steps:
            for stream, layer in step.layers.items():
                for name, view in parts_of(stream, layer).items():
                    own = [id(parameter) for parameter in _parameters(view)]
                    size = view.heads if isinstance(view, AttentionView) else view.fc1.out_features
                    tied = sorted({owners[each] for each in own if each in owners}) or [len(found)]
                    if tied[0] == len(found):
                        found.append(Site(f"{step.name}/{name}".replace(".", "_"), f"{step.stage}/{name}", size, []))
                    number = where[step.name, name] = tied[0]
                    site = found[number]
                    if len(tied) > 1 or site.size != size:
                        others = ", ".join(f"{found[each].name} of {found[each].size}" for each in tied)
                        raise ValueError(
                            f"{step.name}/{name}, of {size} heads or units, shares parameters with {others}; expected one of "
                            "its own size: this host cannot be sliced"
                        )
                    if own[-1] not in owners:
                        site.views.append((view, layer))
                    owners |= dict.fromkeys(own, number)
        return cls(tuple(found), where)


def _parameters(view: View) -> list[Tensor]:
    """Parameters of the host that lose rows or columns; the last one says whether two views are of one module."""
    if isinstance(view, AttentionView):
        owners = [owner for projection in (view.q, view.k, view.v) for owner in projection.owners()]
        return [*(getattr(module, name) for module, name, _ in owners), view.out.weight]
    return [view.fc1.weight, view.fc2.weight]


def parts_of(stream: str, layer: LayerView) -> dict[str, View]:
    """A layer's attentions by their names, and its feed-forward parts as ``'<stream>.mlp'`` and ``'<stream>.first_mlp'``."""
    parts: dict[str, View] = {view.name: view for view in layer.attentions}
    parts[f"{stream}.mlp"] = layer.mlp
    if layer.first_mlp is not None:
        parts[f"{stream}.first_mlp"] = layer.first_mlp
    return parts


def costs_of_one(record: TrimRecord, sites: Sites) -> Tensor:
    """What one head or unit of each site costs, in multiply-adds of the whole model.

    Counted on all real tokens, whatever was dropped. A head's cost is that of its projections, scores and weighted sums, a
    unit's that of its row of the first and its column of the second Linear.

    Args:
        record: Of a forward pass.
        sites: The sites.

    Returns:
        Per sample, fp32 [sites, G].
    """
    totals = [torch.zeros(record.samples, device=record.sample_ids.device) for _ in sites.all]
    for entry in record.steps:
        for stream, layer in entry.step.layers.items():
            for name, view in parts_of(stream, layer).items():
                number = sites.where[entry.step.name, name]
                totals[number] = totals[number] + record.per_sample(entry, _cost_of_one(entry, stream, layer, view))
    return torch.stack(totals).detach()


def _cost_of_one(entry: StepRecord, stream: str, layer: LayerView, view: View) -> Tensor:
    """Multiply-adds of one head or unit, per instance, fp32 [B]."""
    counts = {name: layout.full().float() for name, layout in entry.tokens.items()}
    n = counts[stream]
    if isinstance(view, AttentionView):
        return attention_multiply_adds(view, n, counts[view.reads], 1)
    if layer.first is not None:
        n = torch.full_like(n, layer.first) if view is layer.first_mlp else n - layer.first
    return n * (view.fc1.in_features + view.fc2.out_features)
