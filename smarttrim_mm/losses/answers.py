"""Task losses."""

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from smarttrim_mm.inputs import TextTargets
from smarttrim_mm.registry import MODELS


@MODELS.register_module()
class AnswerCrossEntropy(nn.Module):
    """Cross-entropy over answers.

    Args:
        label_smoothing: Share of the target spread over all answers, in [0, 1).
    """

    target_kind = "classes"

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits [B, C], class indices [B] -> mean over the batch."""
        return cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)


@MODELS.register_module()
class SoftTargetBCE(nn.Module):
    """Binary cross-entropy with soft targets, summed over answers (VQAv2 in METER, arXiv 2111.02387)."""

    target_kind = "scores"

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits [B, C], scores in [0, 1] [B, C] -> mean over the batch of the sum over answers."""
        return binary_cross_entropy_with_logits(logits.float(), targets.float()) * targets.shape[1]


@MODELS.register_module()
class AnswerGeneration(nn.Module):
    """Cross-entropy of the texts that a decoder should give, summed over their tokens (BLIP's VQA, arXiv 2201.12086).

    Args:
        label_smoothing: Share of the target spread over all tokens, in [0, 1). BLIP's code has 0.1.
        per_token: Whether it is the mean over the tokens of the batch instead (BLIP's captioning).
    """

    target_kind = "texts"

    def __init__(self, *, label_smoothing: float = 0.1, per_token: bool = False) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.per_token = per_token

    def forward(self, logits: Tensor, targets: TextTargets) -> Tensor:
        """Logits of the tokens [K, V], texts -> mean over the samples of the weighted sum over their tokens, or over tokens."""
        each = cross_entropy(logits.float(), targets.tokens, label_smoothing=self.label_smoothing, reduction="none")
        weights = targets.token_weights
        return (each * weights).sum() / (weights.sum() if self.per_token else targets.samples)
