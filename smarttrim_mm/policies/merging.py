"""What policies share that rank or merge tokens: rows of instances, and merges made of them."""

import torch
from torch import Tensor

from smarttrim_mm.structures import Layout, Merge


def free_rows(layout: Layout) -> Tensor:
    """True where ``layout.to_rows`` has a token that is not protected, bool [B, n]."""
    return layout.to_rows((~layout.protected).long(), 0) > 0


def merge_of_rows(layout: Layout, place: Tensor, weight: Tensor, sized: bool = False) -> Merge:
    """A merge of places.

    Args:
        layout: Of the stream.
        place: In its row, what each token merges into, its own where it stays, long [B, n].
        weight: Of each token in its mean, shaped like the stream's tokens.
        sized: Whether tokens carry their sizes on.
    """
    positions = layout.to_rows(layout.positions().expand(layout.protected.shape), 0)
    return Merge(layout.from_rows(positions.gather(1, place)), weight, sized)


def sizes_of(layout: Layout) -> Tensor:
    """How many original tokens each stands for, fp32, shaped like the stream's tokens; 1 where that is not followed."""
    if layout.sizes is not None:
        return layout.sizes
    return torch.ones(layout.protected.shape, device=layout.protected.device)
