"""A few padded calls of ``scaled_dot_product_attention``, each over sequences of similar lengths, behind a mask."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from smarttrim_mm.attention.base import AttentionBackend, HeadPlan, Sequences
from smarttrim_mm.ops.device import to_device
from smarttrim_mm.registry import ATTENTION_BACKENDS

# Padded calls take instances of similar lengths together: one call more for each so many multiply-adds of padding.
_PADDING_PER_BUCKET = 2**22
_MOST_BUCKETS = 4
# The CPU kernel takes 16 fp32 numbers at a time and what remains one by one: 32 keys cost it less than 30.
_PADDED_MULTIPLE = 16


@ATTENTION_BACKENDS.register_module()
class BucketedSDPA(AttentionBackend):
    """Sequences sorted by their work into buckets, so that little is padded; on any device, without waiting for it."""

    order = 20

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, of_q: Sequences, of_k: Sequences, heads: HeadPlan | None = None
    ) -> tuple[Tensor, int]:
        padding_per_bucket = max(1, _PADDING_PER_BUCKET // (2 * q.shape[1] * q.shape[2]))
        buckets, inverse = _plan(of_q.lengths, of_k.lengths, padding_per_bucket, q.device)
        outputs = []
        executed = 0
        for bucket in buckets:
            padded = []
            for x, padding in ((q, bucket.of_q), (k, bucket.of_k), (v, bucket.of_k)):
                if bucket.instances is not None or padding.mask is not None:  # else the packed rows are the padded ones
                    x = x.index_select(0, padding.rows)
                padded.append(x.unflatten(0, (-1, padding.length)).transpose(1, 2))  # [b, H, n, d]
            on = None
            if heads is not None and not heads.whole:
                on = heads.on if bucket.instances is None else tuple(heads.on[i] for i in bucket.instances)
            out, pairs = _attend_heads(padded[0], padded[1], padded[2], bucket.of_k.mask, on)
            executed += 2 * pairs * bucket.of_q.length * bucket.of_k.length * q.shape[2]
            outputs.append(out.transpose(1, 2).flatten(0, 1))  # [b n, H, d]
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return (out if inverse is None else out.index_select(0, inverse)), executed


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


@lru_cache(maxsize=32)  # layers that drop nothing share their lengths; more would fill the memory with those of past batches
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
        inverse = None if of_q.mask is None else to_device(of_q.spots, device)
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
    return tuple(buckets), to_device(places, device)


@lru_cache(maxsize=64)  # a stream is padded alike in all attentions of a layer
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
    mask = None if equal else to_device(real, device)[:, None, None, :]
    return _Padding(to_device(rows, device), length, mask, tokens, spots)


def _attend_heads(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, on: tuple[tuple[int, ...], ...] | None
) -> tuple[Tensor, int]:
    """Attention of the (instance, head) pairs that are on (None: all); each is a sequence of its own.

    Returns:
        [b, H, n, d], zero where a head is off, and the number of pairs.
    """
    heads = q.shape[1]
    numbers = np.array([b * heads + head for b, row in enumerate(on or ()) for head in row], dtype=np.int64)
    if on is None or len(numbers) == q.shape[0] * heads:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask), q.shape[0] * heads
    out = q.new_zeros(q.shape)  # zeros_like would keep the strides of a transposed view
    if len(numbers):
        pairs = to_device(numbers, q.device)
        if mask is not None:
            mask = mask.squeeze(1).index_select(0, pairs // heads).unsqueeze(1)
        on_q, on_k, on_v = (t.flatten(0, 1).index_select(0, pairs).unsqueeze(1) for t in (q, k, v))
        part = scaled_dot_product_attention(on_q, on_k, on_v, attn_mask=mask)
        out.view(-1, *q.shape[2:]).index_copy_(0, pairs, part.squeeze(1))
    return out, len(numbers)
