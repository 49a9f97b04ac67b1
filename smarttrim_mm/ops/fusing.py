"""Keeping the best tokens of each instance and fusing the rest into one."""

import torch
from torch import Tensor

from smarttrim_mm.ops.ranking import ranks


def fuse_rest(scores: Tensor, counts: Tensor) -> Tensor:
    """Keeps the best tokens of each row; the rest merges into one, at the place of the best of the rest.

    Args:
        scores: [B, n], -inf at tokens that take no part; ties go to the lower index.
        counts: How many are kept per row, long [B].

    Returns:
        The place that each token merges into, its own where it stays, long [B, n].
    """
    rank, counts = ranks(scores), counts.unsqueeze(1)
    own = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    best_of_rest = (rank == counts).to(torch.uint8).argmax(1, keepdim=True)
    return torch.where((rank > counts) & (scores > -torch.inf), best_of_rest, own)
