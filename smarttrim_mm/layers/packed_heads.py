"""Attention of packed streams whose heads may be off: what is off is neither projected nor attended, where that pays."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from smarttrim_mm.attention.base import AttentionBackend, ChosenAttention, HeadPlan, Sequences
from smarttrim_mm.layers.projections import project, projection_work, split_heads, weigh_by_size
from smarttrim_mm.layers.views import AttentionView
from smarttrim_mm.structures import Evidence
from smarttrim_mm.utils.direct import direct

Look = Callable[..., Evidence]

# A product with a weight costs a CPU as much as so many rows more, as it reads and packs the weight (fp32), and so does a copy
# of the weight's rows of some heads (bf16). Measured with width 768, 40 to 320 rows, on 2 cores of an AMD EPYC.
_ROWS_OF_A_WEIGHT = 43


def attend_packed(
    view: AttentionView,
    x: Tensor,
    memory: Tensor,
    of_q: Sequences,
    of_k: Sequences,
    plan: HeadPlan | None,
    attention: ChosenAttention,
    sizes: Tensor | None = None,
    look: Look | None = None,
) -> tuple[Tensor, int, Evidence | None]:
    """One attention module on packed tokens, projections included.

    Heads that no instance needs are never projected. Those that only some need are projected for all, or for each instance
    apart, by what a cost model says.

    Args:
        view: The module.
        x: Tokens that ask, [S, D]; further rows are filling.
        memory: Tokens that are read, [M, D'], likewise.
        of_q: Sequences of ``x``.
        of_k: Sequences of ``memory``.
        plan: Heads that are on; None: all.
        attention: The backend.
        sizes: How many original tokens each that is read stands for, [M]; None: its score does not depend on it.
        look: Called with queries and keys as they are attended, and the keys alone; all heads must be on.

    Returns:
        As many rows as ``x``, the multiply-adds that were executed, and what ``look`` gave.
    """
    plan = None if plan is None or plan.whole else plan
    if plan is not None and plan.pairs == 0:
        return _without_heads(view, x), 0, None
    backend = attention.on(x.device, _dtype(x))
    if plan is not None and len(plan.on) > 1 and _in_place(x) and backend.runs_alone and _alone_pays(plan, of_q, of_k):
        return *_attend_each(view, x, memory, of_q, of_k, plan, backend, sizes), None
    return _attend_together(view, x, memory, of_q, of_k, plan, backend, sizes, look)


def _without_heads(view: AttentionView, x: Tensor) -> Tensor:
    """Only the bias of the output is left."""
    y, bias = x.new_zeros(len(x), view.out.out_features), view.out.bias
    return y if bias is None else y + bias.to(x.dtype)


def _dtype(x: Tensor) -> torch.dtype:
    """What products of x come in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _in_place(x: Tensor) -> bool:
    """Whether products are written into parts of a tensor.

    In single precision on a CPU: launches are cheap there, and its products take parts of a weight as they lie. Without
    gradients, as they do not go through.
    """
    single = x.dtype is torch.float32 and _dtype(x) is torch.float32
    return single and x.device.type == "cpu" and not torch.is_grad_enabled()


def _alone_pays(plan: HeadPlan, of_q: Sequences, of_k: Sequences) -> bool:
    """Whether to project each instance's own heads costs less than to project all heads of the batch."""
    rows = [n + m for n, m in zip(of_q.lengths, of_k.lengths, strict=True)]
    alone = sum(len(on) * (own + 2 * _ROWS_OF_A_WEIGHT) for on, own in zip(plan.on, rows, strict=True))
    return alone < len(plan.union()) * (sum(rows) + 2 * _ROWS_OF_A_WEIGHT)


def _copy_pays(kept: int, heads: int, rows: int) -> bool:
    """Whether to copy the weights of some heads costs less than to project the others too."""
    return kept * (rows + 2 * _ROWS_OF_A_WEIGHT) < heads * rows


def _attend_together(
    view: AttentionView,
    x: Tensor,
    memory: Tensor,
    of_q: Sequences,
    of_k: Sequences,
    plan: HeadPlan | None,
    backend: AttentionBackend,
    sizes: Tensor | None,
    look: Look | None,
) -> tuple[Tensor, int, Evidence | None]:
    """The heads that any instance needs, projected for all; then each instance attends by its own."""
    every = tuple(range(view.heads))
    heads = every if plan is None else plan.union()
    if len(of_q.lengths) > 1 and not _in_place(x) and not _copy_pays(len(heads), view.heads, len(x) + len(memory)):
        heads = every
    runs = [] if heads == every else _runs(heads)
    q, k, v = project(view, x, memory) if heads == every else _project_heads(view, x, memory, runs)
    asking, read = sum(of_q.lengths), sum(of_k.lengths)
    if x.shape[0] > asking:  # rows of filling
        q = q[:asking]
    if memory.shape[0] > read:
        k, v = k[:read], v[:read]
    q, k, v = (split_heads(t, len(heads)) for t in (q, k, v))
    own = plan if plan is None or heads == every else plan.of_heads(heads)
    keys, width = k, v.shape[-1]
    if sizes is not None:
        q, k, v = weigh_by_size(q, k, v, sizes.log()[:, None])
    seen = None if look is None else look(q, k, keys=keys)
    y, executed = backend(q, k, v, of_q, of_k, None if own is None or own.whole else own)
    y = (y if sizes is None else y[..., :width]).flatten(1)
    if x.shape[0] > asking:  # else it would be copied
        y = pad(y, (0, 0, 0, len(x) - asking))
    out = direct(view.out)(y) if heads == every else _output_of_heads(view, y, runs)
    return out, executed + projection_work(view, x, memory, len(heads)), seen


def _attend_each(
    view: AttentionView,
    x: Tensor,
    memory: Tensor,
    of_q: Sequences,
    of_k: Sequences,
    plan: HeadPlan,
    backend: AttentionBackend,
    sizes: Tensor | None,
) -> tuple[Tensor, int]:
    """Each instance apart, with its own heads alone."""
    out = x.new_empty(len(x), view.out.out_features)
    executed = begin_q = begin_k = 0
    for n, m, on in zip(of_q.lengths, of_k.lengths, plan.on, strict=True):
        own, read, y = x[begin_q : begin_q + n], memory[begin_k : begin_k + m], out[begin_q : begin_q + n]
        size = None if sizes is None else sizes[begin_k : begin_k + m]
        begin_q, begin_k = begin_q + n, begin_k + m
        if not on:
            y.copy_(_without_heads(view, own))
            continue
        runs = _runs(on)
        q, k, v = (split_heads(t, len(on)) for t in _project_heads(view, own, read, runs))
        if size is not None:
            q, k, v = weigh_by_size(q, k, v, size.log()[:, None])
        attended, work = backend(q, k, v, _alone(n, x.device), _alone(m, x.device))
        _output_of_heads(view, attended[..., : view.head_width].flatten(1), runs, y)
        executed += work + projection_work(view, own, read, len(on))
    return out, executed


@lru_cache(maxsize=1024)
@torch.inference_mode(False)  # what is kept must serve passes with gradients too
def _alone(length: int, device: torch.device) -> Sequences:
    """One sequence."""
    return Sequences.of([length], device)


def _runs(on: tuple[int, ...]) -> list[slice]:
    """Ascending numbers as slices, one for each run of neighbours."""
    runs = []
    for _, run in groupby(enumerate(on), lambda pair: pair[1] - pair[0]):
        numbers = [head for _, head in run]
        runs.append(slice(numbers[0], numbers[-1] + 1))
    return runs


def _project_heads(view: AttentionView, x: Tensor, memory: Tensor, runs: list[slice]) -> tuple[Tensor, ...]:
    """Queries, keys and values of some heads, [n, kept d] each."""
    parts = [_channels(view, run) for run in runs]
    return tuple(
        _product_of_rows(source, *projection.parameters(), parts)
        for projection, source in ((view.q, x), (view.k, memory), (view.v, memory))
    )


def _product_of_rows(x: Tensor, weight: Tensor, bias: Tensor | None, parts: list[slice]) -> Tensor:
    """``linear`` by some rows of a weight."""
    if not _in_place(x):
        kept = torch.cat([weight[rows] for rows in parts])
        return linear(x, kept, None if bias is None else torch.cat([bias[rows] for rows in parts]))
    y = x.new_empty(len(x), sum(rows.stop - rows.start for rows in parts))
    begin = 0
    for rows in parts:
        end = begin + rows.stop - rows.start
        _multiply(x, weight[rows], None if bias is None else bias[rows], y[:, begin:end])
        begin = end
    return y


def _output_of_heads(view: AttentionView, y: Tensor, runs: list[slice], out: Tensor | None = None) -> Tensor:
    """What the output projection makes of some heads.

    Args:
        view: The module.
        y: Their outputs, [n, kept d].
        runs: Which they are.
        out: Where to write it, [n, D]; None: to a new tensor.
    """
    weight, bias, parts = view.out.weight, view.out.bias, [_channels(view, run) for run in runs]
    if not _in_place(y):
        return linear(y, torch.cat([weight[:, columns] for columns in parts], 1), bias)
    out = y.new_empty(len(y), len(weight)) if out is None else out
    begin = 0
    for columns in parts:
        end = begin + columns.stop - columns.start
        if begin == 0:
            _multiply(y[:, :end], weight[:, columns], bias, out)
        else:
            torch.addmm(out, y[:, begin:end], weight[:, columns].t(), out=out)
        begin = end
    return out


def _channels(view: AttentionView, heads: slice) -> slice:
    return slice(heads.start * view.head_width, heads.stop * view.head_width)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)
