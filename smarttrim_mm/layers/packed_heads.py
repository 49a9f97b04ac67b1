"""Attention of packed streams whose heads may be off: what is off is neither projected nor attended, where that pays."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import linear

from smarttrim_mm.attention.base import AttentionBackend, ChosenAttention, HeadPlan, Sequences
from smarttrim_mm.layers.projections import project, projection_work, split_heads
from smarttrim_mm.layers.views import AttentionView, Projection

# A product with a weight costs a CPU as much as so many rows more: it reads and packs the weight. Measured for fp32 (width 768,
# 40 to 320 rows, 2 cores of an AMD EPYC); what instances that are projected one by one lose against all together.
_ROWS_OF_A_WEIGHT = 43

_Map = tuple[Tensor, Tensor | None]  # weight [out, in] and bias [out]


def attend_packed(
    view: AttentionView,
    x: Tensor,
    memory: Tensor,
    of_q: Sequences,
    of_k: Sequences,
    plan: HeadPlan | None,
    attention: ChosenAttention,
) -> tuple[Tensor, int]:
    """One attention module on packed tokens, projections included.

    Heads that no instance needs are never projected. Those that only some need are projected for all, or for each instance
    apart, by what a cost model says.

    Args:
        view: The module.
        x: Tokens that ask, [S, D].
        memory: Tokens that are read, [M, D'].
        of_q: Sequences of ``x``.
        of_k: Sequences of ``memory``.
        plan: Heads that are on; None: all.
        attention: The backend.

    Returns:
        [S, D], and the multiply-adds that were executed.
    """
    plan = None if plan is None or plan.whole else plan
    if plan is not None and plan.pairs == 0:
        return _without_heads(view, x), 0
    if plan is None:
        q, k, v = (split_heads(t, view.heads) for t in project(view, x, memory))
        y, executed = attention.on(q.device, q.dtype)(q, k, v, of_q, of_k)
        return view.out(y.flatten(1)), executed + projection_work(view, x, memory, view.heads)
    backend = attention.on(x.device, _dtype(x))
    if _in_place(x) and (len(plan.on) == 1 or (backend.runs_alone and _alone_pays(plan, of_q, of_k))):
        return _attend_each(view, x, memory, of_q, of_k, plan, backend)
    return _attend_together(view, x, memory, of_q, of_k, plan, backend)


def _without_heads(view: AttentionView, x: Tensor) -> Tensor:
    """Only the bias of the output is left."""
    y, bias = x.new_zeros(len(x), view.out.out_features), view.out.bias
    return y if bias is None else y + bias.to(x.dtype)


def _dtype(x: Tensor) -> torch.dtype:
    """What products of x come in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _in_place(x: Tensor) -> bool:
    """Whether products may be written into parts of a tensor.

    On a CPU, as launches are cheap there; without gradients, as they do not go through.
    """
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def _alone_pays(plan: HeadPlan, of_q: Sequences, of_k: Sequences) -> bool:
    """Whether to project each instance's own heads costs less than to project all heads of the batch."""
    rows = [n + m for n, m in zip(of_q.lengths, of_k.lengths, strict=True)]
    alone = sum(len(on) * (own + 2 * _ROWS_OF_A_WEIGHT) for on, own in zip(plan.on, rows, strict=True))
    return alone < len(plan.union()) * (sum(rows) + 2 * _ROWS_OF_A_WEIGHT)


def _attend_together(
    view: AttentionView,
    x: Tensor,
    memory: Tensor,
    of_q: Sequences,
    of_k: Sequences,
    plan: HeadPlan,
    backend: AttentionBackend,
) -> tuple[Tensor, int]:
    """The heads that any instance needs, projected for all; then each instance attends by its own."""
    union = plan.union()
    if len(union) == view.heads:
        q, k, v = (split_heads(t, view.heads) for t in project(view, x, memory))
        y, executed = backend(q, k, v, of_q, of_k, plan)
        return view.out(y.flatten(1)), executed + projection_work(view, x, memory, view.heads)
    index = torch.tensor(union, device=x.device)
    q, k, v = (
        split_heads(_linear_of_heads(projection, source, view, index), len(union))
        for projection, source in ((view.q, x), (view.k, memory), (view.v, memory))
    )
    own = plan.of_heads(union, index)
    y, executed = backend(q, k, v, of_q, of_k, None if own.whole else own)
    columns = view.out.weight.unflatten(1, (view.heads, -1)).index_select(1, index).flatten(1)
    return linear(y.flatten(1), columns, view.out.bias), executed + projection_work(view, x, memory, len(union))


def _linear_of_heads(projection: Projection, x: Tensor, view: AttentionView, on: Tensor) -> Tensor:
    weight, bias = projection.parameters()
    weight = weight.unflatten(0, (view.heads, -1)).index_select(0, on).flatten(0, 1)
    bias = None if bias is None else bias.unflatten(0, (view.heads, -1)).index_select(0, on).flatten()
    return linear(x, weight, bias)


def _attend_each(
    view: AttentionView,
    x: Tensor,
    memory: Tensor,
    of_q: Sequences,
    of_k: Sequences,
    plan: HeadPlan,
    backend: AttentionBackend,
) -> tuple[Tensor, int]:
    """Each instance apart, with its own heads alone; neighbouring ones share a product with a part of the weight as it lies."""
    dtype = _dtype(x)
    x, memory = x.to(dtype), memory.to(dtype)  # autocast does not reach what is written in place
    of_queries, of_keys, of_values = (_cast(*part.parameters(), dtype) for part in (view.q, view.k, view.v))
    of_out = _cast(view.out.weight, view.out.bias, dtype)
    out = x.new_empty(len(x), view.out.out_features)
    executed = begin_q = begin_k = 0
    for n, m, on in zip(of_q.lengths, of_k.lengths, plan.on, strict=True):
        own, read, y = x[begin_q : begin_q + n], memory[begin_k : begin_k + m], out[begin_q : begin_q + n]
        begin_q, begin_k = begin_q + n, begin_k + m
        if not on:
            y.copy_(_without_heads(view, own))
            continue
        runs = _runs(on)
        q, k, v = (
            split_heads(_rows_of(part, source, view.head_width, runs), len(on))
            for part, source in ((of_queries, own), (of_keys, read), (of_values, read))
        )
        attended, work = backend(q, k, v, Sequences.of([n], x.device), Sequences.of([m], x.device))
        _write_output(of_out, attended.flatten(1), view.head_width, runs, y)
        executed += work + projection_work(view, own, read, len(on))
    return out, executed


def _runs(on: tuple[int, ...]) -> list[slice]:
    """Ascending numbers as slices, one for each run of neighbours."""
    runs = []
    for _, run in groupby(enumerate(on), lambda pair: pair[1] - pair[0]):
        numbers = [head for _, head in run]
        runs.append(slice(numbers[0], numbers[-1] + 1))
    return runs


def _cast(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> _Map:
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _rows_of(part: _Map, x: Tensor, width: int, runs: list[slice]) -> Tensor:
    """Projects x by some of the heads: [n, kept d]."""
    weight, bias = part
    y = x.new_empty(len(x), width * sum(run.stop - run.start for run in runs))
    begin = 0
    for run in runs:
        rows = slice(run.start * width, run.stop * width)
        end = begin + rows.stop - rows.start
        _multiply(x, weight[rows], None if bias is None else bias[rows], y[:, begin:end])
        begin = end
    return y


def _write_output(part: _Map, y: Tensor, width: int, runs: list[slice], out: Tensor) -> None:
    """Writes what the output projection makes of some heads, [n, kept d], to ``out`` [n, D]."""
    weight, bias = part
    begin = 0
    for run in runs:
        columns = slice(run.start * width, run.stop * width)
        end = begin + columns.stop - columns.start
        if begin == 0:
            _multiply(y[:, :end], weight[:, columns], bias, out)
        else:
            torch.addmm(out, y[:, begin:end], weight[:, columns].t(), out=out)
        begin = end


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)
