"""Merging tokens into means, and similar ones, as many of each instance (ToMe: Bolya et al., ICLR 2023, arXiv 2210.09461)."""

from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor
from torch.nn.functional import normalize

from smarttrim_mm.ops.rows import row_numbers


@dataclass(frozen=True)
class Merges:
    """Which tokens merge into which others.

    Attributes:
        sources: Places of the tokens that merge, the most similar pair first, long [B, r].
        targets: Places of what each merges into; several may merge into one, long [B, r].
        kept: Places of all that do not merge away, ascending, long [B, N - r].
    """

    sources: Tensor
    targets: Tensor
    kept: Tensor


def most_merges(tokens: int, protected: int = 1) -> int:
    """How many of so many tokens can merge at once: half of those that are not protected, rounded down."""
    return (tokens - protected) // 2


def merge_schedule(tokens: int, layers: int, per_layer: float, protected: int = 1) -> list[int]:
    """Tokens that merge in each layer: the same number everywhere, as nearly as whole tokens allow.

    Args:
        tokens: Tokens of an instance before the first layer N.
        layers: Number of layers L.
        per_layer: How many merge in a layer, 12.5 for 12 and 13 in turn. A layer with fewer tokens than this takes merges what
            it can, as in the paper.
        protected: First tokens that do not take part.

    Returns:
        L numbers.
    """
    schedule = []
    for layer in range(layers):
        wanted = floor((layer + 1) * per_layer) - floor(layer * per_layer)
        schedule.append(min(wanted, most_merges(tokens, protected)))
        tokens -= schedule[-1]
    return schedule


def match_tokens(keys: Tensor, count: int, protected: int = 1) -> Merges:
    """Bipartite soft matching (section 3.2): the tokens that are not protected are dealt in turn into targets and sources, each
    source is paired with the target most like it, and the ``count`` most similar pairs merge.

    Likeness is the cosine of the keys; of equal pairs the first source's counts.

    Args:
        keys: What is compared, [B, N, d]; ToMe takes the mean over heads of the attention's keys.
        count: How many tokens merge r.
        protected: First tokens of each instance, which take no part.

    Returns:
        The matching.

    Raises:
        ValueError: If so many tokens cannot merge at once.
    """
    tokens = keys.shape[1]
    if not 0 <= count <= most_merges(tokens, protected):
        raise ValueError(
            f"count is {count}; expected 0 to {most_merges(tokens, protected)}, half of the {tokens} tokens but {protected} "
            "protected"
        )
    if count == 0:
        none = torch.empty(len(keys), 0, dtype=torch.long, device=keys.device)
        return Merges(none, none, torch.arange(tokens, device=keys.device).expand(len(keys), -1))
    unit = normalize(keys[:, protected:], dim=-1)
    likeness = unit[:, 1::2] @ unit[:, 0::2].transpose(1, 2)  # [B, sources, targets]
    best, nearest = likeness.max(2)
    order = best.argsort(dim=1, descending=True, stable=True)[:, :count]
    sources, targets = 2 * order + 1 + protected, 2 * nearest.gather(1, order) + protected
    merged = torch.zeros(keys.shape[:2], dtype=torch.uint8, device=keys.device).scatter_(1, sources, 1)
    return Merges(sources, targets, merged.argsort(dim=1, stable=True)[:, : tokens - count])


def merge_tokens(x: Tensor, sizes: Tensor, merges: Merges) -> tuple[Tensor, Tensor]:
    """Replaces each target by the mean of itself and what merges into it, weighted by size.

    Args:
        x: Tokens, [B, N, D].
        sizes: How many original tokens each stands for, [B, N].
        merges: What :func:`match_tokens` gave.

    Returns:
        The tokens that are left, [B, N - r, D], and their sizes, [B, N - r].
    """
    sources, targets, kept = (row_numbers(index, x.shape[1]) for index in (merges.sources, merges.targets, merges.kept))
    sums = (x * sizes.unsqueeze(-1).to(x.dtype)).flatten(0, 1)
    sums.index_add_(0, targets, sums.index_select(0, sources))
    sizes = sizes.scatter_add(1, merges.targets, sizes.gather(1, merges.sources)).gather(1, merges.kept)
    return sums.index_select(0, kept).unflatten(0, sizes.shape) / sizes.unsqueeze(-1).to(x.dtype), sizes


def matching_multiply_adds(tokens: Tensor, width: int, protected: int = 1) -> Tensor:
    """Multiply-adds of :func:`match_tokens` where something merges: the likeness of every source and target.

    Args:
        tokens: Tokens of each instance, fp32 [B].
        width: Numbers that are compared d.
        protected: First tokens, which take no part.

    Returns:
        [B].
    """
    free = tokens - protected
    return torch.floor(free / 2) * torch.ceil(free / 2) * width


def weighted_means(x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Tokens [S, D], each the mean of what merges into it, by weight; one that stands alone stays as it is, bit for bit.

    Args:
        x: Tokens.
        rows: The row that each merges into, long [S].
        weight: Of each, [S].
    """
    weight = weight.float()
    total = torch.zeros_like(weight).index_add(0, rows, weight)
    several = torch.zeros_like(weight).index_add(0, rows, torch.ones_like(weight)) > 1
    sums = torch.zeros_like(x, dtype=torch.float32).index_add(0, rows, x.float() * weight.unsqueeze(1))
    means = sums / torch.where(several, total, torch.ones_like(total)).unsqueeze(1)
    return torch.where(several.unsqueeze(1), means.to(x.dtype), x)


def summed_sizes(sizes: Tensor | None, like: Tensor, rows: Tensor) -> Tensor:
    """How many original tokens each stands for after merging.

    Args:
        sizes: Before it; None: one each.
        like: Of their shape.
        rows: As in :func:`weighted_means`.

    Returns:
        Shaped like ``like``; a token that merged away stands for none.
    """
    sizes = torch.ones_like(like, dtype=torch.float32) if sizes is None else sizes
    return torch.zeros_like(sizes.flatten()).index_add(0, rows, sizes.flatten()).view_as(sizes)
