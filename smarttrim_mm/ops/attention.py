"""Attention over kept tokens and kept heads: gated (training), masked (oracle), packed (inference)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, scaled_dot_product_attention

# A dropped key may score above every kept one; its exponential only reaches the gradient of its gate, which is bounded here, as
# one such key could outweigh all others in a clipped gradient (norms up to 1e6 were seen without).
_MAX_EXPONENT = 4.0
# A CPU goes over the scores of so many query-key pairs at a time: they fit into its cache, and their memory is used again.
_SCORES_PER_BLOCK = 2**21
# From this many multiply-adds a sequence on, a call per sequence beats padded calls on a CPU: a rule of thumb.
_LOOP_MULTIPLY_ADDS = 2**18
# Up to this many, padding included, a batch is attended by one thread: likewise.
_ONE_THREAD_MULTIPLY_ADDS = 2**25
# Padded calls take instances of similar lengths together: one call more for each so many multiply-adds of padding.
_PADDING_PER_BUCKET = 2**22
_MOST_BUCKETS = 4
# The CPU kernel takes 16 fp32 numbers at a time and what remains one by one: 32 keys cost it less than 30.
_PADDED_MULTIPLE = 16


def gated_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Softmax attention whose keys carry gates: exp(s) m / sum exp(s) m, in fp32.

    A mask of -inf would give the same output and no gradient to the gates (the masked softmax of DynamicViT,
    arXiv 2106.02034, eq. 10-11, here without its kept diagonal).

    Args:
        q: Queries, [B, H, N, d].
        k: Keys, [B, H, M, d].
        v: Values, [B, H, M, d].
        gate: 1 for kept keys, 0 for dropped ones and padding, [B, M]; at least one kept key an instance.
        dropout_p: Dropout on the attention weights.

    Returns:
        [B, H, N, d].
    """
    if dropout_p == 0:
        out: Tensor = _GatedAttention.apply(q, k, v, gate)
        return out
    weights = _gated_weights(q, k, gate[:, None, None, :]).to(v.dtype)
    gate = gate[:, None, :, None].to(v.dtype).expand(-1, v.shape[1], -1, -1)  # [B, H, M, 1]
    return dropout(weights, dropout_p) @ (v * gate) / (weights @ gate)


def _gated_weights(q: Tensor, k: Tensor, gate: Tensor) -> Tensor:
    """exp(s) of every key over that of the highest kept one, fp32 [..., N, M]; bounded where a dropped key scores above it."""
    scores = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).float()
    with torch.no_grad():
        top = scores.masked_fill(gate == 0, -torch.inf).amax(-1, keepdim=True)
    if scores.requires_grad:
        return torch.exp((scores - top).clamp(max=_MAX_EXPONENT))
    return scores.sub_(top).clamp_(max=_MAX_EXPONENT).exp_()


class _GatedAttention(torch.autograd.Function):
    """Attention over the kept keys, whose gradient reaches the gates of all.

    Where gates are 0 or 1 the output is that of a mask, and so are the gradients of q, k and v: only the gates' gradient needs
    the weights of dropped keys. They are computed in the backward pass, so that no [N, M] tensor waits for it.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        out = scaled_dot_product_attention(q, k, v, attn_mask=(gate > 0)[:, None, None, :])
        ctx.save_for_backward(q, k, v, gate, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, gate, out = ctx.saved_tensors
        batch, heads, queries = q.shape[:3]
        each = (x.flatten(0, 1) for x in (q, k, v, out, grad, gate[:, None].expand(-1, heads, -1)))  # [B H, ...]
        block = batch * heads
        if q.device.type == "cpu":
            block = min(block, max(1, _SCORES_PER_BLOCK // (queries * k.shape[2])))
        blocks = [_gated_gradients(*parts) for parts in zip(*(x.split(block) for x in each), strict=True)]
        grads = (torch.cat(parts).unflatten(0, (batch, heads)) for parts in zip(*blocks, strict=True))
        grad_q, grad_k, grad_v, grad_gate = grads
        return grad_q, grad_k, grad_v, grad_gate.sum(1)


def _gated_gradients(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :class:`_GatedAttention`, per head.

    Args:
        q: Queries, [b, N, d].
        k: Keys, [b, M, d].
        v: Values, [b, M, d].
        out: What the attention gave, [b, N, d].
        grad: Its gradient, [b, N, d].
        gate: Keep gate of the keys, [b, M].

    Returns:
        Those of q, k, v and gate.
    """
    weights = _gated_weights(q, k, gate[:, None, :]).to(v.dtype)  # their sums divide the gradient of the output instead
    kept = gate.unsqueeze(-1).to(v.dtype)  # [b, M, 1]
    grad = grad / (weights @ kept)
    grad_v = weights.transpose(-2, -1) @ grad * kept
    # g . (v - out) as one product: no pass over [N, M] for the difference
    left = torch.cat([grad, -(grad * out).sum(-1, keepdim=True)], -1)
    right = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    slope = weights.mul_(left @ right.transpose(-2, -1))  # of the scores, were every key kept
    kept = kept * q.shape[-1] ** -0.5
    return slope @ (k * kept), slope.transpose(-2, -1) @ q * kept, grad_v, slope.sum(-2, dtype=gate.dtype)


def padded_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, dropout_p: float, whole: bool) -> Tensor:
    """Attention over a padded batch, by the cheapest exact path.

    Args:
        q: Queries, [B, H, N, d].
        k: Keys, [B, H, M, d].
        v: Values, [B, H, M, d].
        gate: Keep gate of the keys, [B, M].
        dropout_p: Dropout on the attention weights.
        whole: Whether every key is known to be kept, so that no mask is needed.

    Returns:
        [B, H, N, d].
    """
    if gate.requires_grad:
        return gated_attention(q, k, v, gate, dropout_p)
    mask = None if whole else (gate > 0)[:, None, None, :]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], heads: Tensor | None = None
) -> tuple[Tensor, int]:
    """Attention of each instance's queries over its own keys, for the heads that are on.

    Args:
        q: Packed queries, [S, H, d].
        k: Packed keys, [M, H, d].
        v: Packed values, [M, H, d].
        lengths_q: Queries of each instance, B numbers that sum to S.
        lengths_k: Keys of each instance, B numbers that sum to M.
        heads: Which (instance, head) pairs are on, bool [B, H]; None: all.

    Returns:
        [S, H, d], zero where a head is off, and the multiply-adds that were executed.
    """
    longest_q, longest_k = max(lengths_q), max(lengths_k)
    equal = len(q) == longest_q * len(lengths_q) and len(k) == longest_k * len(lengths_k) and heads is None
    work = 2 * longest_q * longest_k * q.shape[1] * q.shape[2]
    with _threads_for(work * len(lengths_q), q.device):
        if len(lengths_q) == 1 or (work > _LOOP_MULTIPLY_ADDS and not equal and q.device.type == "cpu"):
            return _attend_each(q, k, v, lengths_q, lengths_k, heads)
        return _attend_padded(q, k, v, lengths_q, lengths_k, heads)


@contextmanager
def _threads_for(work: int, device: torch.device) -> Iterator[None]:
    """One thread for little work on a CPU: to wake the others for every small call costs more than they do."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or work > _ONE_THREAD_MULTIPLY_ADDS:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _attend_each(
    q: Tensor, k: Tensor, v: Tensor, lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], heads: Tensor | None
) -> tuple[Tensor, int]:
    of_each = (  # B views [1, H, n, d] each
        x.transpose(0, 1).unsqueeze(0).split(lengths, 2) for x, lengths in ((q, lengths_q), (k, lengths_k), (v, lengths_k))
    )
    runs = heads.tolist() if heads is not None else [()] * len(lengths_q)
    outputs = []
    pairs = 0
    for one_q, one_k, one_v, on in zip(*of_each, runs, strict=True):
        if all(on):
            out = scaled_dot_product_attention(one_q, one_k, one_v)
        else:
            out = one_q.new_zeros(one_q.shape)
            if any(on):
                kept = _as_slice([head for head, runs_here in enumerate(on) if runs_here])
                out[:, kept] = scaled_dot_product_attention(one_q[:, kept], one_k[:, kept], one_v[:, kept])
        pairs += (sum(on) if on else q.shape[1]) * one_q.shape[2] * one_k.shape[2]
        outputs.append(out.transpose(1, 2))  # [1, n, H, d]
    return torch.cat(outputs, 1).squeeze(0), 2 * pairs * q.shape[2]


def _as_slice(indices: list[int]) -> slice | list[int]:
    """Ascending indices as a slice, which copies nothing, where they are evenly spaced."""
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    evenly = range(indices[0], indices[-1] + 1, step)
    return slice(evenly.start, evenly.stop, step) if list(evenly) == indices else indices


@dataclass(frozen=True)
class _Padding:
    """Where the tokens of some instances lie when they are padded to a common length.

    Attributes:
        rows: Packed row of each padded token, long [b length]; padding repeats row 0.
        length: The common length.
        mask: True at tokens, bool [b, 1, 1, length]; None if none is padding.
        tokens: Packed row of each token, int64 [s].
        spots: Its place among the padded tokens, int64 [s].
    """

    rows: Tensor
    length: int
    mask: Tensor | None
    tokens: NDArray
    spots: NDArray


@dataclass(frozen=True)
class _Bucket:
    """Instances of similar lengths, padded together.

    Attributes:
        instances: Which they are; None: all, in order.
        of_q: Padding of the queries.
        of_k: Padding of the keys.
    """

    instances: list[int] | None
    of_q: _Padding
    of_k: _Padding


@lru_cache(maxsize=256)  # layers that drop nothing share their lengths
@torch.inference_mode(False)  # what is kept must serve passes with gradients too
def _plan(
    lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], padding_per_bucket: int, device: torch.device
) -> tuple[tuple[_Bucket, ...], Tensor | None]:
    """Sorts instances by their work into buckets, so that little is padded.

    Args:
        lengths_q: Queries of each instance.
        lengths_k: Keys of each instance.
        padding_per_bucket: How many padded scores are worth one bucket more.
        device: Where the indices go.

    Returns:
        The buckets, and where each packed query lies in their concatenated padded outputs, long [S]; None: in order.
    """
    work = [n * m for n, m in zip(lengths_q, lengths_k, strict=True)]
    padding = len(work) * max(lengths_q) * max(lengths_k) - sum(work)
    count = min(1 + padding // padding_per_bucket, _MOST_BUCKETS, len(work))
    if count == 1:
        of_q = _pad(lengths_q, None, device)
        inverse = None if of_q.mask is None else torch.from_numpy(of_q.spots).to(device)
        return (_Bucket(None, of_q, _pad(lengths_k, None, device)),), inverse
    buckets = []
    places = np.empty(sum(lengths_q), dtype=np.int64)
    offset = 0
    for part in np.array_split(np.argsort(work, kind="stable"), count):
        instances = part.tolist()
        of_q, of_k = (_pad(lengths, tuple(instances), device) for lengths in (lengths_q, lengths_k))
        places[of_q.tokens] = offset + of_q.spots
        offset += len(of_q.rows)
        buckets.append(_Bucket(instances, of_q, of_k))
    return tuple(buckets), torch.from_numpy(places).to(device)


@lru_cache(maxsize=256)  # a stream is padded alike in all attentions of a layer
@torch.inference_mode(False)
def _pad(lengths: tuple[int, ...], instances: tuple[int, ...] | None, device: torch.device) -> _Padding:
    """Pads instances (None: all) to a multiple of 16 tokens, unless they are of one length."""
    size = np.array(lengths)
    begin = np.cumsum(size) - size
    if instances is not None:
        size, begin = size[list(instances)], begin[list(instances)]
    length = int(size.max())
    equal = bool((size == length).all())
    if not equal:
        length = -(-length // _PADDED_MULTIPLE) * _PADDED_MULTIPLE
    local = np.arange(length)
    rows, real = (begin[:, None] + local).ravel(), local < size[:, None]
    spots = np.flatnonzero(real)
    tokens = rows[spots]
    rows[~real.ravel()] = 0
    mask = None if equal else torch.from_numpy(real).to(device)[:, None, None, :]
    return _Padding(torch.from_numpy(rows).to(device), length, mask, tokens, spots)


def _attend_padded(
    q: Tensor, k: Tensor, v: Tensor, lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], heads: Tensor | None
) -> tuple[Tensor, int]:
    padding_per_bucket = max(1, _PADDING_PER_BUCKET // (2 * q.shape[1] * q.shape[2]))
    buckets, inverse = _plan(lengths_q, lengths_k, padding_per_bucket, q.device)
    if heads is not None and bool(heads.all()):
        heads = None
    outputs = []
    executed = 0
    for bucket in buckets:
        padded = []
        for x, padding in ((q, bucket.of_q), (k, bucket.of_k), (v, bucket.of_k)):
            if bucket.instances is not None or padding.mask is not None:  # else the packed rows are the padded ones
                x = x.index_select(0, padding.rows)
            padded.append(x.unflatten(0, (-1, padding.length)).transpose(1, 2))  # [b, H, n, d]
        on = heads if heads is None or bucket.instances is None else heads[bucket.instances]
        out, pairs = _attend_heads(padded[0], padded[1], padded[2], bucket.of_k.mask, on)
        executed += 2 * pairs * bucket.of_q.length * bucket.of_k.length * q.shape[2]
        outputs.append(out.transpose(1, 2).flatten(0, 1))  # [b n, H, d]
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (out if inverse is None else out.index_select(0, inverse)), executed


def _attend_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, on: Tensor | None) -> tuple[Tensor, int]:
    """Attention of the (instance, head) pairs that are on; each is a sequence of its own.

    Returns:
        [b, H, n, d], zero where a head is off, and the number of pairs.
    """
    pairs = None if on is None or bool(on.all()) else on.flatten().nonzero().squeeze(1)
    if pairs is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask), q.shape[0] * q.shape[1]
    out = q.new_zeros(q.shape)  # zeros_like would keep the strides of a transposed view
    if len(pairs):
        if mask is not None:
            mask = mask.squeeze(1).index_select(0, pairs // q.shape[1]).unsqueeze(1)
        on_q, on_k, on_v = (t.flatten(0, 1).index_select(0, pairs).unsqueeze(1) for t in (q, k, v))
        part = scaled_dot_product_attention(on_q, on_k, on_v, attn_mask=mask)
        out.view(-1, *q.shape[2:]).index_copy_(0, pairs, part.squeeze(1))
    return out, len(pairs)
