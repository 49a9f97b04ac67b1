"""Attention over kept tokens and kept heads: gated (training), masked (oracle), packed (inference)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

# A dropped key may score above every kept one; its exponential only reaches the gradient of its gate, so it can be capped.
_MAX_EXPONENT = 20.0
# Below this many multiply-adds a sequence, one padded call beats a call per sequence on a CPU (measured in docs/design.md).
_LOOP_MULTIPLY_ADDS = 2**22


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
    scores = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
    gate = gate[:, None, None, :]
    with torch.no_grad():
        top = scores.masked_fill(gate == 0, -torch.inf).amax(-1, keepdim=True)
    weights = torch.exp((scores - top).clamp(max=_MAX_EXPONENT)) * gate
    weights = weights / weights.sum(-1, keepdim=True)
    return dropout(weights.to(v.dtype), dropout_p) @ v


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
    q: Tensor, k: Tensor, v: Tensor, lengths_q: Sequence[int], lengths_k: Sequence[int], heads: Tensor | None = None
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
    work = max(lengths_q) * max(lengths_k) * q.shape[1] * q.shape[2] * 2
    if len(lengths_q) == 1 or (work > _LOOP_MULTIPLY_ADDS and q.device.type == "cpu"):
        return _attend_each(q, k, v, lengths_q, lengths_k, heads)
    return _attend_padded(q, k, v, lengths_q, lengths_k, heads)


def _attend_each(
    q: Tensor, k: Tensor, v: Tensor, lengths_q: Sequence[int], lengths_k: Sequence[int], heads: Tensor | None
) -> tuple[Tensor, int]:
    out = torch.zeros_like(q) if heads is not None else torch.empty_like(q)
    executed = 0
    begin_q = begin_k = 0
    for b, (n, m) in enumerate(zip(lengths_q, lengths_k, strict=True)):
        rows_q, rows_k = slice(begin_q, begin_q + n), slice(begin_k, begin_k + m)
        begin_q, begin_k = begin_q + n, begin_k + m
        parts = (q[rows_q], k[rows_k], v[rows_k])
        on = None if heads is None else heads[b].nonzero().squeeze(1)
        if on is not None and len(on) == q.shape[1]:
            on = None
        if on is not None:
            if len(on) == 0:
                continue
            parts = (parts[0].index_select(1, on), parts[1].index_select(1, on), parts[2].index_select(1, on))
        one_q, one_k, one_v = (part.transpose(0, 1).unsqueeze(0) for part in parts)
        result = scaled_dot_product_attention(one_q, one_k, one_v)
        result = result.squeeze(0).transpose(0, 1)
        executed += 2 * n * m * result.shape[1] * result.shape[2]
        if on is None:
            out[rows_q] = result
        else:
            out[rows_q] = out[rows_q].index_copy(1, on, result)
    return out, executed


def _attend_padded(
    q: Tensor, k: Tensor, v: Tensor, lengths_q: Sequence[int], lengths_k: Sequence[int], heads: Tensor | None
) -> tuple[Tensor, int]:
    n, m = max(lengths_q), max(lengths_k)
    slots_q, slots_k = _slots(lengths_q, q.device), _slots(lengths_k, k.device)
    q = _pad(q, slots_q, len(lengths_q), n)
    k = _pad(k, slots_k, len(lengths_k), m)
    v = _pad(v, slots_k, len(lengths_k), m)
    mask = None
    if slots_k is not None:
        counts = torch.tensor(lengths_k, device=k.device)
        mask = (torch.arange(m, device=k.device) < counts.unsqueeze(1))[:, None, None, :]
    pairs = None if heads is None or bool(heads.all()) else heads.flatten().nonzero().squeeze(1)
    if pairs is None:
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        executed = 2 * q.shape[0] * q.shape[1] * n * m * q.shape[-1]
    else:  # an (instance, head) pair that is on is one sequence
        if mask is not None:
            mask = mask.squeeze(1).index_select(0, pairs // q.shape[1]).unsqueeze(1)
        on_q, on_k, on_v = (t.flatten(0, 1).index_select(0, pairs).unsqueeze(1) for t in (q, k, v))
        part = scaled_dot_product_attention(on_q, on_k, on_v, attn_mask=mask)
        out = q.new_zeros(q.shape)  # zeros_like would keep the strides of a transposed view
        out.view(-1, n, q.shape[-1]).index_copy_(0, pairs, part.squeeze(1))
        executed = 2 * len(pairs) * n * m * q.shape[-1]
    out = out.transpose(1, 2).flatten(0, 1)  # [B n, H, d]
    return (out if slots_q is None else out.index_select(0, slots_q)), executed


def _slots(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """Where packed tokens go in a padded batch, long [S]; None if nothing needs padding."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    counts = torch.tensor(lengths, device=device)
    begins = torch.arange(len(lengths), device=device) * longest - (counts.cumsum(0) - counts)
    return torch.arange(sum(lengths), device=device) + begins.repeat_interleave(counts)


def _pad(x: Tensor, slots: Tensor | None, batch_size: int, longest: int) -> Tensor:
    if slots is not None:
        x = x.new_zeros(batch_size * longest, *x.shape[1:]).index_copy_(0, slots, x)
    return x.view(batch_size, longest, *x.shape[1:]).transpose(1, 2)  # [B, H, n, d]
