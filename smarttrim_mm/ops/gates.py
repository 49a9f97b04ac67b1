"""Keep/drop decisions from logits: stochastic and differentiable in training, a threshold at inference."""

import math

import torch
from torch import Tensor

from smarttrim_mm.ops.ranking import ranks
from smarttrim_mm.structures import Layout


def gumbel_keep(logits: Tensor, temperature: float, noise: float = 1.0) -> Tensor:
    """Samples hard keep decisions with a straight-through gradient.

    The two-class Gumbel-softmax (Jang et al., arXiv 1611.01144; Maddison et al., arXiv 1611.00712) written with one logit,
    keep minus drop: the difference of two Gumbel variables is logistic. Computed in fp32.

    Args:
        logits: Keep-minus-drop logits, any shape.
        temperature: Softness of the gradient; the sampled decision does not depend on it.
        noise: Scale of the noise: 1 samples from the keep probabilities, 0 decides as inference does.

    Returns:
        Exactly 0 or 1, fp32, shaped like ``logits``; its gradient is that of the soft sample.
    """
    soft = torch.sigmoid(noisy(logits, noise) / temperature)
    return straight_through(soft, soft > 0.5)


def noisy(logits: Tensor, noise: float = 1.0) -> Tensor:
    """Keep-minus-drop logits with the difference of two Gumbel variables added, which is logistic, fp32.

    Args:
        logits: Any shape.
        noise: Scale of the noise.
    """
    logits = logits.float()
    uniform = torch.rand_like(logits).clamp_(1e-6, 1 - 1e-6)
    return logits + noise * torch.logit(uniform)


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """Hard decisions with the gradient of soft ones (Bengio et al., arXiv 1308.3432).

    Args:
        soft: In [0, 1], any shape.
        hard: Whether they are at least 0.5, bool, shaped likewise.

    Returns:
        Exactly 0 or 1, of the dtype of ``soft``.
    """
    return (hard.to(soft.dtype) - soft).detach() + soft


def threshold_keep(logits: Tensor, threshold: float) -> Tensor:
    """Keeps where the keep probability reaches a threshold.

    Args:
        logits: Keep-minus-drop logits, any shape.
        threshold: Probability in (0, 1).

    Returns:
        bool, shaped like ``logits``.
    """
    return logits >= math.log(threshold / (1 - threshold))


def keep_at_least(keep: Tensor, logits: Tensor, layout: Layout, least: int) -> Tensor:
    """Lets an instance that would keep too few tokens keep its best ones as well.

    Protected tokens count, and are the first to be kept; an instance that has fewer tokens keeps them all. Each instance is
    ranked by itself, ties go to the earlier token.

    Args:
        keep: Decisions, bool, or float in {0, 1} with a straight-through gradient, [B, N] or [S].
        logits: Keep-minus-drop logits, likewise.
        layout: How the tokens lie.
        least: Tokens that an instance keeps at least.

    Returns:
        Decisions like ``keep``; a token that is kept for this reason passes its gradient on, so that a gate that keeps nothing
        else can still learn which tokens matter.
    """
    scores = logits.detach().float().masked_fill(layout.protected, torch.inf)
    grid = layout.to_grid(scores, -torch.inf)
    kept = layout.to_grid(((keep > 0) | layout.protected).to(torch.float32), 0.0).sum(1)
    few = (kept < least).unsqueeze(1)
    best = layout.from_grid((ranks(grid) < least) & (grid > -torch.inf) & few)
    return keep | best if keep.dtype == torch.bool else keep + (best * (1 - keep)).detach()
