"""What decisions do to streams: gates close on padded ones, packed ones lose tokens; heads, merges, skipped parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from smarttrim_mm.attention.base import HeadPlan
from smarttrim_mm.layers.turns import Turns
from smarttrim_mm.layouts import PackedLayout, PaddedLayout
from smarttrim_mm.ops.host import to_host
from smarttrim_mm.structures import Decision, Streams, TokenStream


@dataclass(frozen=True)
class Heads:
    """What was decided on the heads of one attention.

    Attributes:
        gate: [B, H], with its gradient in training.
        plan: The same for packed streams; None: they are padded.
    """

    gate: Tensor
    plan: HeadPlan | None

    def some(self, chosen: Sequence[int], index: Tensor) -> Heads:
        """Those of some instances, on the host and on the device."""
        gate = self.gate.index_select(0, index)
        plan = self.plan
        return Heads(gate, None if plan is None else HeadPlan(plan.gate[index], tuple(plan.on[i] for i in chosen)))


@dataclass(frozen=True)
class Cut:
    """Streams as a decision left them, and what is to be run on them.

    Attributes:
        streams: By name.
        heads: By attention; others run whole.
        turns: By part of a layer; others run for all.
    """

    streams: dict[str, TokenStream]
    heads: dict[str, Heads]
    turns: dict[str, Turns]


def apply_decision(decision: Decision, streams: Streams) -> Cut:
    """Cuts streams before a layer, all padded or all packed."""
    cut = _gate(decision, streams) if is_padded(streams) else _apply(decision, streams)
    for name, notes in decision.carry.items():
        stream = cut.streams[name]
        cut.streams[name] = replace(stream, carried={**stream.carried, **notes})
    return cut


def pack(cut: Cut) -> Cut:
    """The same, packed: the host reads lengths, heads and turns."""
    streams = {name: stream.pack() for name, stream in cut.streams.items()}
    heads, turns = cut.heads.values(), cut.turns.values()
    on_host = iter(to_host([each.gate > 0 for each in heads] + [each.gate > 0 for each in turns]))
    plans = {name: Heads(each.gate, HeadPlan.of(each.gate, next(on_host))) for name, each in cut.heads.items()}
    return Cut(streams, plans, {name: Turns.of(each.gate, next(on_host)) for name, each in cut.turns.items()})


def _gate(decision: Decision, streams: Streams) -> Cut:
    """Closes the gates of padded streams."""
    merged, keep = _merge(decision, streams)
    return Cut(
        {name: stream.select(keep[name]) if name in keep else stream for name, stream in merged.items()},
        {name: Heads(gate, None) for name, gate in decision.heads.items()},
        {name: Turns(gate, None, False) for name, gate in decision.run.items()},
    )


def _apply(decision: Decision, streams: Streams) -> Cut:
    """Cuts packed streams: the host reads all lengths, heads and turns at once."""
    merged, keep = _merge(decision, streams)
    marked = {name: _packed(stream).mark(keep[name]) for name, stream in merged.items() if name in keep}
    gates = [gate > 0 for gate in (*decision.heads.values(), *decision.run.values())]
    on_host = iter(to_host([ends for _, ends in marked.values()] + gates))
    cut = dict(merged)
    for (name, (marks, cu_seqlens)), ends in zip(marked.items(), on_host, strict=False):
        stream = merged[name]
        x, layout = _packed(stream).take(stream.x, marks, cu_seqlens, ends)
        cut[name] = TokenStream(x, layout, stream.carried)
    heads = {name: Heads(gate, HeadPlan.of(gate, next(on_host))) for name, gate in decision.heads.items()}
    turns = {name: Turns.of(gate, next(on_host)) for name, gate in decision.run.items()}
    return Cut(cut, heads, turns)


def _merge(decision: Decision, streams: Streams) -> tuple[dict[str, TokenStream], Mapping[str, Tensor]]:
    """Merges tokens; returns the streams and what is to be kept of each: neither what is dropped nor what merged away."""
    merged, keep = dict(streams), dict(decision.keep)
    for name, merge in decision.merge.items():
        x, layout, stays = streams[name].layout.merge(streams[name].x, merge)
        merged[name] = replace(streams[name], x=x, layout=layout)
        keep[name] = stays if name not in keep else keep[name] * stays
    return merged, keep


def _packed(stream: TokenStream) -> PackedLayout:
    assert isinstance(stream.layout, PackedLayout)
    return stream.layout


def is_padded(streams: Streams) -> bool:
    """Whether the streams lie padded."""
    return any(isinstance(stream.layout, PaddedLayout) for stream in streams.values())
