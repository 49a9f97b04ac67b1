"""Keeping the best tokens of each instance and fusing the rest: into one token, or into samples of themselves."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from smarttrim_mm.ops.ranking import ranks


def kept_counts(tokens: Tensor, dropped: Tensor | float) -> Tensor:
    """How many tokens are kept if a share of them is dropped, rounded up.

    Args:
        tokens: Of each instance, [B].
        dropped: Share, in [0, 1).

    Returns:
        long [B].
    """
    return torch.ceil(tokens * (1 - dropped) - 1e-4).long()  # 1e-4: float error is no extra token


def fuse_rest(scores: Tensor, counts: Tensor) -> Tensor:
    """Keeps the best tokens of each row and fuses the rest into one, which takes the place of the best of the rest.

    Args:
        scores: [B, n], -inf at tokens that take no part; ties go to the lower index.
        counts: How many are kept per row, long [B].

    Returns:
        The place that each token merges into, its own where it stays, long [B, n].
    """
    rank, wanted = ranks(scores), counts.unsqueeze(1)
    own = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    fused = (rank == wanted).long().argmax(1, keepdim=True)
    return torch.where((scores > -torch.inf) & (rank >= wanted), fused, own)


def merge_into_samples(keys: Tensor, free: Tensor, counts: Tensor) -> Tensor:
    """Merges tokens into an even sample of themselves, each into the one whose key is most like its own, by cosine.

    Of ``m`` free tokens of a row, ``c`` of which are sampled, the ``j``-th, from 0 on, is if ``j c mod m < c``: the first is,
    and the others are spread evenly. Comparing takes n^2 d multiply-adds.

    Args:
        keys: What is compared, [B, n, d].
        free: Tokens that take part, bool [B, n].
        counts: How many are sampled per row, long [B], at least 1; more than take part means all of them.

    Returns:
        The place that each token merges into, its own where it stays, long [B, n].
    """
    number, many = free.cumsum(1) - 1, free.sum(1, keepdim=True).clamp(min=1)  # a row may have none
    sampled = free & (number * counts.unsqueeze(1) % many < counts.unsqueeze(1))
    unit = normalize(keys.float(), dim=-1)
    alike = (unit @ unit.transpose(1, 2)).masked_fill(~sampled.unsqueeze(1), -torch.inf)
    own = torch.arange(keys.shape[1], device=keys.device).expand(free.shape)
    return torch.where(free & ~sampled, alike.max(2).indices, own)
