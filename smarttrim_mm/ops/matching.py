"""Which tokens are alike, in instances with different numbers of them.

Of two halves: ToMe (Bolya et al., ICLR 2023, arXiv 2210.09461). Any with any: CrossGET (Shi et al., ICML 2024, arXiv
2305.17455).
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from smarttrim_mm.ops.ranking import ranks


def bipartite_match(keys: Tensor, free: Tensor, counts: Tensor) -> Tensor:
    """Which tokens merge into which (section 3, "Bipartite Soft Matching").

    The free tokens of an instance are dealt in turn into targets and sources, by their order; each source is paired with the
    target most like it, and the pairs that are most alike merge. Likeness is the cosine of the keys; of equal pairs the first
    source's counts, of equal targets the first.

    Args:
        keys: What is compared, [B, n, d].
        free: Tokens that take part, bool [B, n].
        counts: How many of each instance merge, long [B]; more than it has sources means all of them.

    Returns:
        The place that each token merges into, its own where it stays, long [B, n].
    """
    size = free.shape[1]
    number = free.cumsum(1) - 1  # of each free token among those of its instance
    is_source, is_target = free & (number % 2 == 1), free & (number % 2 == 0)
    sources, targets = size // 2, (size + 1) // 2  # at most
    source = _first_places(is_source)[:, :sources]
    target = _first_places(is_target)[:, :targets]
    unit = normalize(keys.float(), dim=-1)
    alike = _take(unit, source) @ _take(unit, target).transpose(1, 2)  # [B, sources, targets]
    alike = alike.masked_fill(~is_target.gather(1, target)[:, None], -torch.inf)
    best, nearest = alike.max(2)
    best = best.masked_fill(~is_source.gather(1, source), -torch.inf)
    merges = (ranks(best) < counts[:, None]) & (best > -torch.inf)
    own = torch.arange(size, device=keys.device).expand(free.shape)
    into = torch.where(merges, target.gather(1, nearest), source)
    return own.scatter(1, source, into)


def complete_match(keys: Tensor, importance: Tensor, free: Tensor, counts: Tensor) -> Tensor:
    """Which tokens merge into which, where any may merge into any other ("complete-graph soft matching").

    Tokens are put in the order of their likeness to the token most like them, and each is compared with those behind it, so
    that of two that are most like each other one stays. A token i merges the sooner the more like the best of these, j, it is,
    and the less important: by cos(i, j) - importance(i). Each token that merges does so into the one most like it among all
    that do not. Of equals the first counts. That is the rule of CrossGET's published code.

    Args:
        keys: What is compared, [B, n, d].
        importance: Of each token, of the size of cosines, [B, n].
        free: Tokens that take part, bool [B, n].
        counts: How many of each instance merge, long [B]; more than all but one means all but one.

    Returns:
        The place that each token merges into, its own where it stays, long [B, n].
    """
    size = free.shape[1]
    own = torch.arange(size, device=keys.device)
    unit = normalize(keys.float(), dim=-1)
    alike = unit @ unit.transpose(1, 2)
    # two that are most like each other tie in the order: not by float error, which depends on the batch, but by their index
    alike = (alike + alike.transpose(1, 2)) / 2
    alike = alike.masked_fill(~(free.unsqueeze(2) & free.unsqueeze(1)) | (own.unsqueeze(1) == own), -torch.inf)
    order = ranks(alike.amax(2))
    best = alike.masked_fill(order.unsqueeze(1) < order.unsqueeze(2), -torch.inf).amax(2) - importance
    merges = (ranks(best) < counts.unsqueeze(1)) & (best > -torch.inf)
    nearest = alike.masked_fill(merges.unsqueeze(1), -torch.inf).argmax(2)
    return torch.where(merges, nearest, own)


def complete_multiply_adds(tokens: Tensor, width: int) -> Tensor:
    """Multiply-adds of :func:`complete_match`, [B]; arguments as of :func:`matching_multiply_adds`."""
    return tokens * tokens * width


def matching_multiply_adds(tokens: Tensor, width: int) -> Tensor:
    """Multiply-adds of :func:`bipartite_match`, [B].

    Args:
        tokens: Tokens of each instance, those that do not take part included, fp32 [B].
        width: Numbers that are compared d.
    """
    return torch.floor(tokens / 2) * torch.ceil(tokens / 2) * width


def merge_counts(free: Tensor, depth: int, per_layer: Tensor) -> Tensor:
    """How many tokens merge in a layer, so that whole numbers add up to a wanted rate; at most half of them can.

    Args:
        free: Tokens of each instance that may merge now, [B].
        depth: Layers that merged before.
        per_layer: Tokens that are to merge in each layer, of each instance, [B].

    Returns:
        long [B].
    """
    wanted = torch.floor((depth + 1) * per_layer + 1e-4) - torch.floor(depth * per_layer + 1e-4)  # 1e-4: float error
    return torch.minimum(wanted, torch.floor(free / 2)).long()


def _first_places(marked: Tensor) -> Tensor:
    """Places of marked tokens in order, then of the others, long [B, n]."""
    return (~marked).to(torch.uint8).argsort(dim=1, stable=True)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
