"""The project's one implementation of a transformer layer, over views of a host's layers.

``run_layer`` asks the policy, cuts the streams, and runs the layer on them in either of two executions that must agree:
padded streams (training: decisions are gates) and packed ones (inference: what is dropped is left out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import dropout

from smarttrim_mm.attention.base import ChosenAttention, HeadPlan
from smarttrim_mm.layers.packed_heads import attend_packed
from smarttrim_mm.layers.projections import project, projection_work, split_heads
from smarttrim_mm.layers.record import StepRecord
from smarttrim_mm.layers.token_wise import Map, TokenWise
from smarttrim_mm.layers.views import AttentionView, JoinView, LayerStep, LayerView, MlpView, Sublayer
from smarttrim_mm.ops.attention import padded_attention
from smarttrim_mm.ops.host import to_host
from smarttrim_mm.ops.row_filling import fill_rows
from smarttrim_mm.structures import Decision, Layout, PackedLayout, PaddedLayout, Streams, TokenStream

_AUTO = ChosenAttention()
_EAGER = TokenWise()


class DecidesLayers(Protocol):
    """The part of a policy that a layer needs."""

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision: ...


@dataclass(frozen=True)
class _Heads:
    """What was decided on the heads of one attention.

    Attributes:
        gate: [B, H], with its gradient in training.
        plan: The same for packed streams; None: they are padded.
    """

    gate: Tensor
    plan: HeadPlan | None


def run_layer(
    step: LayerStep,
    streams: Streams,
    policy: DecidesLayers,
    guides: Mapping[str, Tensor] | None = None,
    attention: ChosenAttention = _AUTO,
    token_wise: TokenWise = _EAGER,
    pays: Callable[[LayerStep, Streams], bool] | None = None,
) -> tuple[dict[str, TokenStream], StepRecord]:
    """Decides on, cuts and runs one step.

    Args:
        step: Views of the host's layers.
        streams: The streams of the step, all padded or all packed.
        policy: Decides what stays.
        guides: Guide tokens [B, D] of streams outside the step (``step.guides``).
        attention: Computes the attention of packed streams.
        token_wise: Computes what is done to each token alone; in training, where dropout acts, that is done as it is.
        pays: Asked once padded streams are cut whether they shall be packed; None: they stay as they are.

    Returns:
        The streams after the step, and the record of what was kept and executed. Streams without a layer in this step
        (memories) come back as they were cut.
    """
    decision = policy.before_layer(step, streams, guides or {})
    before = {name: stream.layout for name, stream in streams.items()}
    packed = all(isinstance(layout, PackedLayout) for layout in before.values())
    cut, heads = _apply(decision, streams) if packed else _gate(decision, streams)
    if pays is not None and not packed and pays(step, cut):
        packed, cut = True, {name: stream.pack() for name, stream in cut.items()}
        rows = to_host([gate > 0 for gate in decision.heads.values()])
        plans = zip(decision.heads.items(), rows, strict=True)
        heads = {name: _Heads(gate, HeadPlan.of(gate, on)) for (name, gate), on in plans}
    del streams  # what was dropped need not wait in memory while the layer runs
    executed = 0
    outputs = dict(cut)
    filled = cut
    if any(layer.owner.training for layer in step.layers.values()):
        token_wise = _EAGER
    elif packed:
        filled = {name: TokenStream(fill_rows(stream.x), stream.layout) for name, stream in cut.items()}
    for name, layer in step.layers.items():
        x, work = _run_stream(name, layer, filled, heads, attention, token_wise)
        layout = cut[name].layout
        outputs[name] = TokenStream(x if x.shape[0] == layout.rows else x[: layout.rows], layout)
        executed += work
    record = StepRecord(
        step=step,
        before=before,
        tokens={name: stream.layout for name, stream in cut.items()},
        heads=dict(decision.heads),
        executed=executed,
    )
    return outputs, record


def _gate(decision: Decision, streams: Streams) -> tuple[dict[str, TokenStream], dict[str, _Heads]]:
    """Closes the gates of padded streams."""
    keep = decision.keep
    cut = {name: stream.select(keep[name]) if name in keep else stream for name, stream in streams.items()}
    return cut, {name: _Heads(gate, None) for name, gate in decision.heads.items()}


def _apply(decision: Decision, streams: Streams) -> tuple[dict[str, TokenStream], dict[str, _Heads]]:
    """Cuts packed streams: the host reads all lengths and heads of the step at once."""
    marked = {name: _packed(stream).mark(decision.keep[name]) for name, stream in streams.items() if name in decision.keep}
    on_host = iter(to_host([ends for _, ends in marked.values()] + [gate > 0 for gate in decision.heads.values()]))
    cut = dict(streams)
    for (name, (marks, cu_seqlens)), ends in zip(marked.items(), on_host, strict=False):
        cut[name] = TokenStream(*_packed(streams[name]).take(streams[name].x, marks, cu_seqlens, ends))
    plans = zip(decision.heads.items(), on_host, strict=True)
    return cut, {name: _Heads(gate, HeadPlan.of(gate, rows)) for (name, gate), rows in plans}


def _packed(stream: TokenStream) -> PackedLayout:
    assert isinstance(stream.layout, PackedLayout)
    return stream.layout


def _run_stream(
    name: str,
    layer: LayerView,
    streams: Streams,
    heads: Mapping[str, _Heads],
    attention: ChosenAttention,
    token_wise: TokenWise,
) -> tuple[Tensor, int]:
    sublayers, stream, executed = layer.sublayers(), streams[name], 0
    for sublayer in sublayers:
        if sublayer[0][0].first is None:
            here = {**streams, name: stream}
            stream, work = _run_attention(name, layer, sublayer, here, heads, attention, token_wise)
            executed += work
    if layer.first_mlp is None or layer.first is None:
        stream, work = _run_mlp(layer, layer.mlp, stream, token_wise)
        return stream.x, executed + work
    whole = stream.layout
    first, others = replace(stream, x=stream.x[: whole.rows]).split(layer.first)
    for sublayer in sublayers:
        if sublayer[0][0].first is not None:
            here = {**streams, name: first}
            first, work = _run_attention(name, layer, sublayer, here, heads, attention, token_wise)
            executed += work
    first, work = _run_mlp(layer, layer.first_mlp, first, token_wise)
    others, more = _run_mlp(layer, layer.mlp, others, token_wise)
    return whole.join(first.x, others.x), executed + work + more


def _run_attention(
    name: str,
    layer: LayerView,
    sublayer: Sublayer,
    streams: Streams,
    heads: Mapping[str, _Heads],
    attention: ChosenAttention,
    token_wise: TokenWise,
) -> tuple[TokenStream, int]:
    """One sub-layer of the attentions that are joined, on a stream as the sub-layer before left it."""
    (views, join), training, executed = sublayer, layer.owner.training, 0
    x, layout = streams[name].x, streams[name].layout
    first, parts = views[0], []
    query = TokenStream(first.norm(x) if layer.pre_norm else x, layout)
    for view in views:
        memory = query if view.reads == name else streams[view.reads]
        part, work = _attend(view, query, memory, heads.get(view.name), training, attention)
        parts.append(part)
        executed += work
    if join is not None and join.merge is not None:
        executed += x.shape[:-1].numel() * join.merge.weight.numel()
    branch = _branch(first, layout, training)
    return TokenStream(token_wise.add_branch(x, _join(join, parts), branch, first.norm, layer.pre_norm), layout), executed


def _run_mlp(layer: LayerView, view: MlpView, stream: TokenStream, token_wise: TokenWise) -> tuple[TokenStream, int]:
    x, branch = stream.x, _branch(view, stream.layout, layer.owner.training)
    y = token_wise.mlp_sublayer(x, view.fc1, view.act, view.fc2, branch, view.norm, layer.pre_norm)
    return TokenStream(y, stream.layout), x.shape[:-1].numel() * view.multiply_adds


def _join(join: JoinView | None, parts: list[Tensor]) -> Tensor:
    if join is None:
        return parts[0]
    return sum(parts[1:], parts[0]) / len(parts) if join.merge is None else join.merge(torch.cat(parts, -1))


def _branch(view: AttentionView | MlpView, layout: Layout, training: bool) -> Map | None:
    """What happens to a sub-layer's output before it is added to its input; None: nothing."""
    return partial(_drop_branch, view=view, layout=layout) if training else view.scale


def _drop_branch(y: Tensor, view: AttentionView | MlpView, layout: Layout) -> Tensor:
    y = dropout(y, view.dropout)
    return _drop_path(y if view.scale is None else view.scale(y), layout, view.drop_path)


def _drop_path(x: Tensor, layout: Layout, p: float) -> Tensor:
    """Zeroes whole instances (Huang et al., arXiv 1603.09382), by the random numbers that timm draws."""
    if p == 0:
        return x
    keep = (1 - p + torch.rand(layout.batch_size, 1, dtype=x.dtype, device=x.device)).floor() / (1 - p)
    return x * layout.per_token(keep)


def _attend(
    view: AttentionView,
    query: TokenStream,
    memory: TokenStream,
    heads: _Heads | None,
    training: bool,
    attention: ChosenAttention,
) -> tuple[Tensor, int]:
    if isinstance(query.layout, PaddedLayout):
        assert isinstance(memory.layout, PaddedLayout)
        return _attend_padded(view, query.x, memory.x, memory.layout, heads.gate if heads else None, training)
    assert isinstance(memory.layout, PackedLayout)
    of_q = query.layout.sequences
    of_k = of_q if memory.layout is query.layout else memory.layout.sequences  # backends lay out one set of sequences once
    return attend_packed(view, query.x, memory.x, of_q, of_k, heads.plan if heads else None, attention)


def _attend_padded(
    view: AttentionView, x: Tensor, memory: Tensor, layout: PaddedLayout, gate: Tensor | None, training: bool
) -> tuple[Tensor, int]:
    q, k, v = (split_heads(t, view.heads).transpose(1, 2) for t in project(view, x, memory))
    y = padded_attention(q, k, v, layout.gate, view.attention_dropout if training else 0.0, layout.key_bias)
    if gate is not None:
        y = y * gate.to(y.dtype)[:, :, None, None]
    executed = 2 * q.numel() * k.shape[2] + projection_work(view, x, memory, view.heads)
    return view.out(y.transpose(1, 2).flatten(2)), executed
