"""Keep/drop decisions from logits: stochastic and differentiable in training, a threshold at inference."""

import math

import torch
from torch import Tensor


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
    logits = logits.float()
    uniform = torch.rand_like(logits).clamp_(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((logits + noise * torch.logit(uniform)) / temperature)
    return straight_through(soft, soft > 0.5)


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
