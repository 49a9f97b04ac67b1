"""What a policy may see of an attention: keys, the guide token's row, attention received. Computed where it is wanted only."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.structures import Evidence, PackedLayout, PaddedLayout

KEYS, GUIDE_ROW, RECEIVED = "keys", "guide_row", "received"
Looks = Mapping[str, frozenset[str]]  # by attention, what is wanted of it


def look_padded(q: Tensor, k: Tensor, of_q: PaddedLayout, of_k: PaddedLayout, wanted: frozenset[str], keys: Tensor) -> Evidence:
    """Evidence of padded streams.

    Args:
        q: Queries, [B, H, N, d].
        k: Keys, [B, H, M, d], with the sizes of merged tokens where they count.
        of_q: Layout of the queries.
        of_k: Layout of the keys.
        wanted: Of :data:`KEYS`, :data:`GUIDE_ROW` and :data:`RECEIVED`.
        keys: Keys alone, [B, H, M, d].

    Returns:
        The evidence.
    """
    scale, dropped = q.shape[-1] ** -0.5, of_k.gate == 0
    row = received = None
    if GUIDE_ROW in wanted and of_q.guide_index is not None:
        scores = q[:, :, of_q.guide_index : of_q.guide_index + 1] * scale @ k.transpose(-2, -1)  # [B, H, 1, M]
        row = scores.squeeze(2).float().masked_fill(dropped[:, None], -torch.inf).softmax(-1).mean(1)
    elif GUIDE_ROW in wanted:
        wanted = wanted | {RECEIVED}
    if RECEIVED in wanted:
        given = (q * scale, k, of_q.gate > 0, dropped)
        if torch.is_grad_enabled():  # few policies have a backward pass that needs the weights of all pairs: they are not kept
            received = checkpoint(_received_padded, *given, use_reentrant=False, preserve_rng_state=False)
        else:
            received = _received_padded(*given)
    return _evidence(wanted, keys.mean(1) if KEYS in wanted else None, row, received)


def look_packed(q: Tensor, k: Tensor, of_q: PackedLayout, of_k: PackedLayout, wanted: frozenset[str], keys: Tensor) -> Evidence:
    """Evidence of packed streams.

    Args:
        q: Queries, [S, H, d].
        k: Keys, [M, H, d], with the sizes of merged tokens where they count.
        of_q: Layout of the queries.
        of_k: Layout of the keys.
        wanted: Of :data:`KEYS`, :data:`GUIDE_ROW` and :data:`RECEIVED`.
        keys: Keys alone, [M, H, d].

    Returns:
        The evidence.
    """
    scale, row, received = q.shape[-1] ** -0.5, None, None
    if GUIDE_ROW in wanted and of_q.guide_index is not None:
        asking = (q.index_select(0, of_q.cu_seqlens[:-1]) * scale).index_select(0, of_k.instance)
        row = _softmax_of_instances((asking * k).sum(-1).float(), of_k).mean(1)
    elif GUIDE_ROW in wanted:
        wanted = wanted | {RECEIVED}
    if RECEIVED in wanted:
        received = _received((q * scale).transpose(0, 1), k.transpose(0, 1), of_q.lengths, of_k.lengths)
    return _evidence(wanted, keys.mean(1) if KEYS in wanted else None, row, received)


def looking_multiply_adds(step: LayerStep, looks: Looks, counts: Mapping[str, Tensor]) -> Tensor | float:
    """Multiply-adds per instance of what the policy has computed to see it, [B]; keys cost nothing.

    Args:
        step: The step.
        looks: What is wanted of its attentions.
        counts: Tokens of each stream that the attentions run on, [B] each.
    """
    total: Tensor | float = 0.0
    for name, layer in step.layers.items():
        for view in layer.attentions:
            wanted = looks.get(view.name, frozenset())
            n, m = counts[name], counts[view.reads]
            n = n if view.first is None else torch.full_like(n, view.first)
            width = view.heads * view.head_width
            if GUIDE_ROW in wanted and name in step.guideless:
                wanted = wanted | {RECEIVED}
            elif GUIDE_ROW in wanted:
                total = total + m * width
            if RECEIVED in wanted:
                total = total + n * m * width
    return total


def _evidence(wanted: frozenset[str], keys: Tensor | None, row: Tensor | None, received: Tensor | None) -> Evidence:
    return Evidence(keys, received if row is None and GUIDE_ROW in wanted else row, received)


def _softmax_of_instances(scores: Tensor, layout: PackedLayout) -> Tensor:
    """Soft-max of packed scores [S, H] over the tokens of each instance."""
    index = layout.instance.unsqueeze(1).expand_as(scores)
    none = scores.new_full((layout.batch_size, scores.shape[1]), -torch.inf)
    top = none.scatter_reduce(0, index, scores.detach(), "amax")
    weights = (scores - top.index_select(0, layout.instance)).exp()
    total = torch.zeros_like(none).index_add(0, layout.instance, weights)
    return weights / total.index_select(0, layout.instance)


def _received_padded(q: Tensor, k: Tensor, asks: Tensor, dropped: Tensor) -> Tensor:
    """Mean attention received by the keys, [B, M], from tokens that ask, bool [B, N]; q is scaled, dropped is bool [B, M]."""
    weights = (q @ k.transpose(-2, -1)).float().masked_fill(dropped[:, None, None], -torch.inf).softmax(-1)
    each = asks.float()[:, None, :, None]
    return (weights * each).sum(2).mean(1) / each.sum(2).squeeze(1)


def _received(q: Tensor, k: Tensor, of_q: tuple[int, ...], of_k: tuple[int, ...]) -> Tensor:
    """Mean attention received by the keys, instance by instance, so that nothing is padded; q is scaled, [H, S, d]: [M]."""
    begins_q, begins_k = accumulate(of_q, initial=0), accumulate(of_k, initial=0)
    parts = []
    for begin, n, start, m in zip(begins_q, of_q, begins_k, of_k, strict=False):
        weights = (q[:, begin : begin + n] @ k[:, start : start + m].transpose(-2, -1)).float().softmax(-1)
        parts.append(weights.mean((0, 1)))
    return torch.cat(parts)
