"""The project's one implementation of a transformer layer, over views of a host's layers.

``run_layer`` asks the policy, cuts the streams, and runs the layer on them in either of two executions that must agree:
padded streams (training: decisions are gates) and packed ones (inference: what is dropped is left out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import dropout

from smarttrim_mm.attention.base import ChosenAttention
from smarttrim_mm.layers.cutting import Heads, apply_decision, is_padded, pack
from smarttrim_mm.layers.decision_checks import check_first, check_looks, check_second
from smarttrim_mm.layers.evidence import Looks, look_packed, look_padded
from smarttrim_mm.layers.packed_heads import attend_packed
from smarttrim_mm.layers.projections import project, projection_work, split_heads, weigh_by_size
from smarttrim_mm.layers.record import Merged, StepRecord
from smarttrim_mm.layers.token_wise import Map, TokenWise
from smarttrim_mm.layers.turns import Ran, Turns, put_back, take_some, take_turns
from smarttrim_mm.layers.views import AttentionView, JoinView, LayerStep, LayerView, MlpView, Sublayer
from smarttrim_mm.ops.attention import padded_attention
from smarttrim_mm.ops.device import to_device
from smarttrim_mm.ops.row_filling import fill_rows
from smarttrim_mm.structures import Decision, Evidence, Layout, PackedLayout, PaddedLayout, Streams, TokenStream
from smarttrim_mm.utils.direct import direct

_AUTO = ChosenAttention()
_EAGER = TokenWise()


class DecidesLayers(Protocol):
    """The part of a policy that a layer needs."""

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision: ...

    def looks(self, step: LayerStep) -> Looks: ...

    def reduces(self, step: LayerStep) -> frozenset[str]: ...

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision: ...

    def layers_of(self, step: LayerStep) -> Mapping[str, LayerView]: ...


@dataclass(frozen=True)
class _Run:
    """What the layers of one step are run with.

    Attributes:
        layers: The layers, by stream, as the policy has them run.
        heads: Heads that are on, by attention; others run whole.
        turns: Who runs a part of a layer; others run for all.
        looks: What is wanted of attentions.
        seen: What was seen of them so far, by attention.
        attention: Computes the attention of packed streams.
        token_wise: Computes what is done to each token alone.
    """

    layers: Mapping[str, LayerView]
    heads: Mapping[str, Heads]
    turns: Mapping[str, Turns]
    looks: Looks
    seen: dict[str, Evidence]
    attention: ChosenAttention
    token_wise: TokenWise


def run_layer(
    step: LayerStep,
    streams: Streams,
    policy: DecidesLayers,
    guides: Mapping[str, Tensor] | None = None,
    attention: ChosenAttention = _AUTO,
    token_wise: TokenWise = _EAGER,
    pays: Callable[[LayerStep, Streams, Mapping[str, Tensor]], bool] | None = None,
) -> tuple[dict[str, TokenStream], StepRecord]:
    """Decides on, cuts and runs one step.

    The policy is asked before the step, and, if it says so (``policy.reduces``), once more when all attentions of the step
    have run and no MLP has: it then has seen of the attentions what it wanted (``policy.looks``), and may merge tokens too.

    Args:
        step: Views of the host's layers.
        streams: The streams of the step, all padded or all packed.
        policy: Decides what stays.
        guides: Guide tokens [B, D] of streams outside the step (``step.guides``).
        attention: Computes the attention of packed streams.
        token_wise: Computes what is done to each token alone; in training, where dropout acts, that is done as it is.
        pays: Asked once padded streams are cut whether they shall be packed, with the streams and ``decision.run``; None: they
            stay as they are.

    Returns:
        The streams after the step, and the record of what was kept and executed. Streams without a layer in this step
        (memories) come back as they were cut.

    Raises:
        ValueError: If the policy decides what it may not decide there, or wants to see an attention whose heads, or whose
            instances, it leaves out.
    """
    decision = policy.before_layer(step, streams, guides or {})
    check_first(step, decision)
    before = {name: stream.layout for name, stream in streams.items()}
    cut = apply_decision(decision, streams)
    if pays is not None and is_padded(streams) and pays(step, cut.streams, decision.run):
        cut = pack(cut)
    current = cut.streams
    del streams  # what was dropped need not wait in memory while the layer runs
    reduces = policy.reduces(step)
    looks = policy.looks(step) if reduces else {}
    check_looks(step, looks, decision, current)
    training = any(layer.owner.training for layer in step.layers.values())
    if training:
        token_wise = _EAGER
    run = _Run(policy.layers_of(step), cut.heads, cut.turns, looks, {}, attention, token_wise)
    tokens = {name: stream.layout for name, stream in current.items()}
    current = _fill(current, training)
    after: dict[str, Layout] = {}
    merged: dict[str, Merged] = {}
    if not reduces:
        current, executed = _run_whole(current, run)
    else:
        current, executed = _run_attentions(current, run)
        asked = {name: _unfilled(stream) for name, stream in current.items()}
        second = policy.after_attention(step, asked, run.seen, guides or {})
        check_second(step, second, reduces)
        current = apply_decision(second, asked).streams
        after = {name: stream.layout for name, stream in current.items()}
        merged = {name: Merged.of(merge, tokens[name]) for name, merge in second.merge.items()}
        current, work = _run_mlps(_fill(current, training), run)
        executed += work
    record = StepRecord(
        step=step,
        before=before,
        tokens=tokens,
        heads=dict(decision.heads),
        executed=executed,
        after=after,
        run=dict(decision.run),
        merged=merged,
    )
    return current, record


def _fill(streams: dict[str, TokenStream], training: bool) -> dict[str, TokenStream]:
    """Packed streams with further rows behind them, where that makes products faster; never in training."""
    if training or is_padded(streams):
        return streams
    filled = {name: fill_rows(stream.x) for name, stream in streams.items()}
    return {name: stream if filled[name] is stream.x else stream.with_tokens(filled[name]) for name, stream in streams.items()}


def _unfilled(stream: TokenStream) -> TokenStream:
    """The stream without rows of filling."""
    rows = stream.layout.rows
    return stream if stream.x.shape[0] == rows else stream.with_tokens(stream.x[:rows])


def _run_whole(streams: dict[str, TokenStream], run: _Run) -> tuple[dict[str, TokenStream], int]:
    """Attentions and MLP, one stream after the other, each on what the step received: a host's dropout draws in this order."""
    outputs, executed = dict(streams), 0
    for name in run.layers:
        stream, work = _attentions_in_turn(name, streams, run)
        outputs[name], more = _mlps_in_turn(name, stream, run)
        executed += work + more
    return {name: _unfilled(stream) for name, stream in outputs.items()}, executed


def _run_attentions(streams: dict[str, TokenStream], run: _Run) -> tuple[dict[str, TokenStream], int]:
    """The attentions of all streams, each on what the step received."""
    outputs, executed = dict(streams), 0
    for name in run.layers:
        outputs[name], work = _attentions_in_turn(name, streams, run)
        executed += work
    return outputs, executed


def _run_mlps(streams: dict[str, TokenStream], run: _Run) -> tuple[dict[str, TokenStream], int]:
    """The MLPs of all streams; drops the rows that filled packed streams up."""
    outputs, executed = dict(streams), 0
    for name in run.layers:
        outputs[name], work = _mlps_in_turn(name, streams[name], run)
        executed += work
    return {name: _unfilled(stream) for name, stream in outputs.items()}, executed


def _attentions_in_turn(name: str, streams: Streams, run: _Run) -> Ran:
    """The attentions of one stream, for those whose turn it is."""
    given = (name, run.layers[name], streams, run)
    ways = partial(_attentions, *given), partial(_attentions_of_some, *given)
    return take_turns(run.turns.get(f"{name}.attention"), streams[name], *ways)


def _mlps_in_turn(name: str, stream: TokenStream, run: _Run) -> Ran:
    """The MLP of one stream, for those whose turn it is."""
    given = (run.layers[name], stream, run.token_wise)
    ways = partial(_mlps, *given), partial(_mlps_of_some, *given)
    return take_turns(run.turns.get(f"{name}.mlp"), stream, *ways)


def _attentions_of_some(name: str, layer: LayerView, streams: Streams, run: _Run, chosen: tuple[int, ...]) -> Ran:
    """The attentions of one packed stream, of some instances alone."""
    needed = {name, *(view.reads for view in layer.attentions)}
    some = {each: take_some(streams[each], chosen) for each in needed}
    index = to_device(np.array(chosen), streams[name].x.device)
    heads = {view.name: run.heads[view.name].some(chosen, index) for view in layer.attentions if view.name in run.heads}
    part, work = _attentions(name, layer, {each: stream for each, (stream, _) in some.items()}, replace(run, heads=heads))
    return put_back(streams[name], some[name][1], part), work


def _mlps_of_some(layer: LayerView, stream: TokenStream, token_wise: TokenWise, chosen: tuple[int, ...]) -> Ran:
    """The MLP of one packed stream, of some instances alone."""
    some, rows = take_some(stream, chosen)
    part, work = _mlps(layer, some, token_wise)
    return put_back(stream, rows, part), work


def _attentions(name: str, layer: LayerView, streams: Streams, run: _Run) -> Ran:
    """The attentions of one stream; those that only its first tokens have come last, on these alone."""
    sublayers, stream, executed = layer.sublayers(), streams[name], 0
    for sublayer in sublayers:
        if sublayer[0][0].first is None:
            stream, work = _run_attention(name, layer, sublayer, {**streams, name: stream}, run)
            executed += work
    of_first = [sublayer for sublayer in sublayers if sublayer[0][0].first is not None]
    if not of_first or layer.first is None:
        return stream, executed
    whole = stream.layout
    first, others = _unfilled(stream).split(layer.first)
    for sublayer in of_first:
        first, work = _run_attention(name, layer, sublayer, {**streams, name: first}, run)
        executed += work
    return stream.with_tokens(whole.join(first.x, others.x)), executed


def _mlps(layer: LayerView, stream: TokenStream, token_wise: TokenWise) -> Ran:
    """The MLP of one stream, or those of its first tokens and of the others."""
    if layer.first_mlp is None or layer.first is None:
        return _run_mlp(layer, layer.mlp, stream, token_wise)
    whole = stream.layout
    first, others = _unfilled(stream).split(layer.first)
    first, work = _run_mlp(layer, layer.first_mlp, first, token_wise)
    others, more = _run_mlp(layer, layer.mlp, others, token_wise)
    return stream.with_tokens(whole.join(first.x, others.x)), work + more


def _run_attention(name: str, layer: LayerView, sublayer: Sublayer, streams: Streams, run: _Run) -> Ran:
    """One sub-layer of the attentions that are joined, on a stream as the sub-layer before left it."""
    (views, join), training, executed = sublayer, layer.owner.training, 0
    x, layout = streams[name].x, streams[name].layout
    first, parts = views[0], []
    query = streams[name].with_tokens(direct(first.norm)(x) if layer.pre_norm else x)
    for view in views:
        memory = query if view.reads == name else streams[view.reads]
        part, work, seen = _attend(view, query, memory, run.heads.get(view.name), training, run)
        parts.append(part)
        if seen is not None:
            run.seen[view.name] = seen
        executed += work
    if join is not None and join.merge is not None:
        executed += x.shape[:-1].numel() * join.merge.weight.numel()
    branch = _branch(first, layout, training)
    y = run.token_wise.add_branch(x, _join(join, parts), branch, first.norm, layer.pre_norm)
    return streams[name].with_tokens(y), executed


def _run_mlp(layer: LayerView, view: MlpView, stream: TokenStream, token_wise: TokenWise) -> Ran:
    x, branch = stream.x, _branch(view, stream.layout, layer.owner.training)
    y = token_wise.mlp_sublayer(x, view.fc1, view.act, view.fc2, branch, view.norm, layer.pre_norm)
    return stream.with_tokens(y), x.shape[:-1].numel() * view.multiply_adds


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
    view: AttentionView, query: TokenStream, memory: TokenStream, heads: Heads | None, training: bool, run: _Run
) -> tuple[Tensor, int, Evidence | None]:
    wanted = run.looks.get(view.name, frozenset())
    if isinstance(query.layout, PaddedLayout):
        return _attend_padded(view, query, memory, heads.gate if heads else None, training, wanted)
    assert isinstance(memory.layout, PackedLayout)
    of_q, of_k = query.layout, memory.layout
    sequences = of_q.sequences  # backends lay out one set of sequences once
    others = sequences if of_k is of_q else of_k.sequences
    look = partial(look_packed, of_q=of_q, of_k=of_k, wanted=wanted) if wanted else None
    plan = heads.plan if heads else None
    return attend_packed(view, query.x, memory.x, sequences, others, plan, run.attention, of_k.sizes, look)


def _attend_padded(
    view: AttentionView, query: TokenStream, memory: TokenStream, gate: Tensor | None, training: bool, wanted: frozenset[str]
) -> tuple[Tensor, int, Evidence | None]:
    of_q, of_k = query.layout, memory.layout
    assert isinstance(of_q, PaddedLayout) and isinstance(of_k, PaddedLayout)
    x, read = query.x, memory.x
    q, k, v = (split_heads(t, view.heads).transpose(1, 2) for t in project(view, x, read))
    keys, width = k, v.shape[-1]
    if of_k.sizes is not None:
        q, k, v = weigh_by_size(q, k, v, of_k.sizes.log()[:, None])
    seen = look_padded(q, k, of_q, of_k, wanted, keys) if wanted else None
    y = padded_attention(q, k, v, of_k.gate, view.attention_dropout if training else 0.0, of_k.key_bias)
    if of_k.sizes is not None:
        y = y[..., :width]
    if gate is not None:
        y = y * gate.to(y.dtype)[:, :, None, None]
    executed = 2 * q.numel() * k.shape[2] + projection_work(view, x, read, view.heads)
    return direct(view.out)(y.transpose(1, 2).flatten(2)), executed, seen
