"""The project's one implementation of a transformer layer, over views of a host's layers.

``run_layer`` asks the policy, cuts the streams, and runs the layer on them in either of two executions that must agree:
padded streams (training: decisions are gates) and packed ones (inference: what is dropped is left out).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear

from smarttrim_mm.layers.record import StepRecord
from smarttrim_mm.layers.views import AttentionView, JoinView, LayerStep, LayerView, MlpView, Projection, Sublayer
from smarttrim_mm.ops.attention import packed_attention, padded_attention
from smarttrim_mm.structures import Decision, Layout, PackedLayout, PaddedLayout, Streams, TokenStream


class DecidesLayers(Protocol):
    """The part of a policy that a layer needs."""

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision: ...


def run_layer(
    step: LayerStep, streams: Streams, policy: DecidesLayers, guides: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, TokenStream], StepRecord]:
    """Decides on, cuts and runs one step.

    Args:
        step: Views of the host's layers.
        streams: The streams of the step, all padded or all packed.
        policy: Decides what stays.
        guides: Guide tokens [B, D] of streams outside the step (``step.guides``).

    Returns:
        The streams after the step, and the record of what was kept and executed. Streams without a layer in this step
        (memories) come back as they were cut.
    """
    decision = policy.before_layer(step, streams, guides or {})
    cut = {name: _cut(stream, decision.keep.get(name)) for name, stream in streams.items()}
    executed = 0
    outputs = dict(cut)
    for name, layer in step.layers.items():
        x, work = _run_stream(name, layer, cut, decision.heads)
        outputs[name] = replace(cut[name], x=x)
        executed += work
    record = StepRecord(
        step=step,
        before={name: stream.layout for name, stream in streams.items()},
        tokens={name: stream.layout for name, stream in cut.items()},
        heads=dict(decision.heads),
        executed=executed,
    )
    return outputs, record


def _cut(stream: TokenStream, keep: Tensor | None) -> TokenStream:
    return stream if keep is None else stream.select(keep)


def _run_stream(name: str, layer: LayerView, streams: Streams, heads: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    sublayers, stream, executed = layer.sublayers(), streams[name], 0
    for sublayer in sublayers:
        if sublayer[0][0].first is None:
            stream, work = _run_attention(name, layer, sublayer, {**streams, name: stream}, heads)
            executed += work
    if layer.first_mlp is None or layer.first is None:
        stream, work = _run_mlp(layer, layer.mlp, stream)
        return stream.x, executed + work
    whole = stream.layout
    first, others = stream.split(layer.first)
    for sublayer in sublayers:
        if sublayer[0][0].first is not None:
            first, work = _run_attention(name, layer, sublayer, {**streams, name: first}, heads)
            executed += work
    (first, work), (others, more) = _run_mlp(layer, layer.first_mlp, first), _run_mlp(layer, layer.mlp, others)
    return whole.join(first.x, others.x), executed + work + more


def _run_attention(
    name: str, layer: LayerView, sublayer: Sublayer, streams: Streams, heads: Mapping[str, Tensor]
) -> tuple[TokenStream, int]:
    """One sub-layer of the attentions that are joined, on a stream as the sub-layer before left it."""
    (views, join), training, executed = sublayer, layer.owner.training, 0
    x, layout = streams[name].x, streams[name].layout
    first, parts = views[0], []
    query = TokenStream(first.norm(x) if layer.pre_norm else x, layout)
    for view in views:
        memory = query if view.reads == name else streams[view.reads]
        part, work = _attend(view, query, memory, heads.get(view.name), training)
        parts.append(part)
        executed += work
    if join is not None and join.merge is not None:
        executed += x.shape[:-1].numel() * join.merge.weight.numel()
    y = _branch(_join(join, parts), first, layout, training)
    return TokenStream(x + y if layer.pre_norm else first.norm(x + y), layout), executed


def _run_mlp(layer: LayerView, view: MlpView, stream: TokenStream) -> tuple[TokenStream, int]:
    x, layout, training = stream.x, stream.layout, layer.owner.training
    y = _branch(view.fc2(view.act(view.fc1(view.norm(x) if layer.pre_norm else x))), view, layout, training)
    x = x + y if layer.pre_norm else view.norm(x + y)
    return TokenStream(x, layout), stream.x.shape[:-1].numel() * view.multiply_adds


def _join(join: JoinView | None, parts: list[Tensor]) -> Tensor:
    if join is None:
        return parts[0]
    return sum(parts[1:], parts[0]) / len(parts) if join.merge is None else join.merge(torch.cat(parts, -1))


def _branch(y: Tensor, view: AttentionView | MlpView, layout: Layout, training: bool) -> Tensor:
    """What a sub-layer adds to its input, of its output."""
    y = dropout(y, view.dropout, training)
    return _drop_path(y if view.scale is None else view.scale(y), layout, view.drop_path, training)


def _drop_path(x: Tensor, layout: Layout, p: float, training: bool) -> Tensor:
    """Zeroes whole instances (Huang et al., arXiv 1603.09382), by the random numbers that timm draws."""
    if p == 0 or not training:
        return x
    keep = (1 - p + torch.rand(layout.batch_size, 1, dtype=x.dtype, device=x.device)).floor() / (1 - p)
    return x * layout.per_token(keep)


def _attend(
    view: AttentionView, query: TokenStream, memory: TokenStream, heads: Tensor | None, training: bool
) -> tuple[Tensor, int]:
    if isinstance(query.layout, PaddedLayout):
        assert isinstance(memory.layout, PaddedLayout)
        return _attend_padded(view, query.x, memory.x, memory.layout, heads, training)
    assert isinstance(memory.layout, PackedLayout)
    on = None
    if heads is not None:
        on = heads.any(0).nonzero().squeeze(1)
        heads = heads.index_select(1, on)
    return _attend_packed(view, query.x, memory.x, (query.layout.lengths, memory.layout.lengths), on, heads)


def _attend_padded(
    view: AttentionView, x: Tensor, memory: Tensor, layout: PaddedLayout, gate: Tensor | None, training: bool
) -> tuple[Tensor, int]:
    q, k, v = (_split(t, view.heads).transpose(1, 2) for t in _project(view, x, memory))
    y = padded_attention(q, k, v, layout.gate, view.attention_dropout if training else 0.0, layout.whole)
    if gate is not None:
        y = y * gate.to(y.dtype)[:, :, None, None]
    executed = 2 * q.numel() * k.shape[2] + _projection_work(view, x, memory, view.heads)
    return view.out(y.transpose(1, 2).flatten(2)), executed


def _projection_work(view: AttentionView, x: Tensor, memory: Tensor, heads: int) -> int:
    rows, keys = x.shape[:-1].numel(), memory.shape[:-1].numel()
    return heads * view.head_width * (rows * (view.q.inputs + view.out.out_features) + 2 * keys * view.k.inputs)


def _attend_packed(
    view: AttentionView,
    x: Tensor,
    memory: Tensor,
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
    on: Tensor | None,
    heads: Tensor | None,
) -> tuple[Tensor, int]:
    """Heads that no instance needs are not projected either: ``on`` lists the others (None: all), ``heads`` is theirs."""
    count = view.heads if on is None else len(on)
    if count == 0:
        y, bias = x.new_zeros(x.shape), view.out.bias
        return (y if bias is None else y + bias.to(x.dtype)), 0
    if on is None or count == view.heads:
        q, k, v = (_split(t, count) for t in _project(view, x, memory))
    else:
        q, k, v = (
            _split(_linear_of_heads(projection, source, view, on), count)
            for projection, source in ((view.q, x), (view.k, memory), (view.v, memory))
        )
    y, executed = packed_attention(q, k, v, *lengths, heads if len(lengths[0]) > 1 else None)
    executed += _projection_work(view, x, memory, count)
    if on is None or count == view.heads:
        return view.out(y.flatten(1)), executed
    columns = view.out.weight.unflatten(1, (view.heads, -1)).index_select(1, on).flatten(1)
    return linear(y.flatten(1), columns, view.out.bias), executed


def _linear_of_heads(projection: Projection, x: Tensor, view: AttentionView, on: Tensor) -> Tensor:
    weight, bias = projection.parameters()
    weight = weight.unflatten(0, (view.heads, -1)).index_select(0, on).flatten(0, 1)
    bias = None if bias is None else bias.unflatten(0, (view.heads, -1)).index_select(0, on).flatten()
    return linear(x, weight, bias)


def _project(view: AttentionView, x: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
    fused = view.q.weight is view.k.weight is view.v.weight
    if fused and x is memory and view.q.rows is not None:
        return linear(x, view.q.weight, view.q.bias).chunk(3, -1)
    return tuple(linear(source, *p.parameters()) for p, source in ((view.q, x), (view.k, memory), (view.v, memory)))


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1))
