"""(Instance, head) pairs as sequences of their own: how kernels for sequences of different lengths leave heads out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from smarttrim_mm.attention.base import HeadPlan, Sequences
from smarttrim_mm.ops.device import to_device

# How many multiply-adds of attention a GPU does while it reads and writes one bf16 number: 150 by the data sheet of an H200,
# were its tensor cores a third busy. Not measured.
MULTIPLY_ADDS_PER_MOVE = 128
_WIDTH_MULTIPLE = 8

Kernel = Callable[[Tensor, Tensor, Tensor, Sequences, Sequences, float], Tensor]


def attend_pairs(
    kernel: Kernel,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    of_q: Sequences,
    of_k: Sequences,
    heads: HeadPlan | None,
    multiply_adds_per_move: float = MULTIPLY_ADDS_PER_MOVE,
) -> tuple[Tensor, int]:
    """Attends by a kernel that knows sequences, not heads that are off.

    Where heads are off, either the pairs that are on become the kernel's sequences, of one head each, which copies their
    queries, keys, values and outputs; or all heads are attended, and what is off is zeroed. What the first saves and costs is
    counted, see :func:`pairs_pay`. Nothing is read from the device.

    Args:
        kernel: Attention of (q [S, H, d], k, v [M, H, d], sequences of the queries, of the keys, scale), giving [S, H, d].
            Its d is a multiple of 8.
        q: As for :class:`~smarttrim_mm.attention.base.AttentionBackend`, and so on.
        k: Likewise.
        v: Likewise.
        of_q: Likewise.
        of_k: Likewise.
        heads: Likewise.
        multiply_adds_per_move: How many multiply-adds take the time of copying one number.

    Returns:
        [S, H, d], zero where a head is off, and the multiply-adds that were executed, without what a kernel's tiles add.
    """
    width, scores = q.shape[2], [n * m for n, m in zip(of_q.lengths, of_k.lengths, strict=True)]
    if heads is None or heads.whole:
        return _on_any_width(kernel, q, k, v, of_q, of_k), 2 * width * q.shape[1] * sum(scores)
    if heads.pairs == 0:
        return q.new_zeros(q.shape), 0
    if not pairs_pay(heads, of_q, of_k, multiply_adds_per_move):
        out = _on_any_width(kernel, q, k, v, of_q, of_k)
        return off_zeroed(out, of_q, heads), 2 * width * q.shape[1] * sum(scores)
    pairs_q = pairs_of(of_q, heads)
    pairs_k = pairs_q if of_k is of_q else pairs_of(of_k, heads)
    out = _on_any_width(kernel, pairs_q.gather(q), pairs_k.gather(k), pairs_k.gather(v), pairs_q.sequences, pairs_k.sequences)
    executed = 2 * width * sum(len(on) * work for on, work in zip(heads.on, scores, strict=True))
    return pairs_q.scatter(out, q.shape), executed


def pairs_pay(heads: HeadPlan, of_q: Sequences, of_k: Sequences, multiply_adds_per_move: float) -> bool:
    """Whether the multiply-adds of the pairs that are off outweigh copying those that are on.

    Of a pair with n queries and m keys of width d, attention takes 2 d n m multiply-adds, and to copy it moves 2 d (n + m)
    numbers: its queries, keys, values and outputs.
    """
    saved = moved = 0
    for n, m, on in zip(of_q.lengths, of_k.lengths, heads.on, strict=True):
        saved += (heads.heads - len(on)) * n * m
        moved += len(on) * (n + m)
    return saved > multiply_adds_per_move * moved


@dataclass(frozen=True)
class Pairs:
    """Where the tokens of (instance, head) pairs lie in a packed tensor [S, H, d].

    Attributes:
        tokens: Packed token of each of the pairs' tokens, long [S'].
        heads: Its head, long [S'].
        sequences: The pairs as sequences.
    """

    tokens: Tensor
    heads: Tensor
    sequences: Sequences

    def gather(self, x: Tensor) -> Tensor:
        """[S, H, d] as packed sequences of one head, [S', 1, d]."""
        return x[self.tokens, self.heads].unsqueeze(1)

    def scatter(self, x: Tensor, shape: torch.Size) -> Tensor:
        """[S', 1, d] back to where it lay in [S, H, d]; zero elsewhere."""
        return x.new_zeros(shape).index_put((self.tokens, self.heads), x.squeeze(1))


def pairs_of(of: Sequences, plan: HeadPlan) -> Pairs:
    """The pairs that are on, instance by instance; laid out by the host, which copies a few numbers a pair."""
    instances = np.repeat(np.arange(len(plan.on)), [len(on) for on in plan.on])
    size = np.array(of.lengths)
    lengths = size[instances]
    ends = np.cumsum(lengths)
    # a pair's tokens follow each other here and there: the distance is what is repeated for each of them
    shift = (np.cumsum(size) - size)[instances] - (ends - lengths)
    heads = np.array([head for on in plan.on for head in on], dtype=np.int64)
    table = np.zeros((4, len(lengths) + 1), dtype=np.int64)  # one transfer; the last column stands for no token
    table[0, :-1], table[1, :-1], table[2, :-1], table[3, 1:] = lengths, shift, heads, ends
    device, total = of.cu_seqlens.device, int(ends[-1])
    count, shifts, numbers, cu_seqlens = to_device(table, device).unbind(0)
    tokens = shifts.repeat_interleave(count, output_size=total) + torch.arange(total, device=device)
    own = numbers.repeat_interleave(count, output_size=total)
    return Pairs(tokens, own, Sequences(tuple(lengths.tolist()), cu_seqlens.int()))


def off_zeroed(x: Tensor, of: Sequences, plan: HeadPlan) -> Tensor:
    """[S, H, d] with zeros where a head is off."""
    on = plan.gate.repeat_interleave(of.cu_seqlens.diff(), 0, output_size=len(x))  # [S, H]
    return x.masked_fill(~on.unsqueeze(-1), 0)


def _on_any_width(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, of_q: Sequences, of_k: Sequences) -> Tensor:
    """Kernels want widths that are multiples of 8: zeros are appended, and the scale is that of the width itself."""
    width = q.shape[-1]
    missing = -width % _WIDTH_MULTIPLE
    if missing:
        q, k, v = (pad(x, (0, missing)) for x in (q, k, v))
    return kernel(q, k, v, of_q, of_k, width**-0.5)[..., :width]
