"""What a retrieval model is taught: which images and texts belong together, among pairs that it confuses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """What a batch is compared with: features of momentum encoders, of the batch itself (first) and of K earlier pairs.

    Attributes:
        images: float [E, B + K].
        texts: Likewise.
        wanted: Soft targets, of each image among the texts and then of each text among the images, float [2 B, B + K].
    """

    images: Tensor
    texts: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class Negatives:
    """Hard negatives, drawn from the batch.

    Attributes:
        images: A wrong image for each text, long [B].
        texts: A wrong text for each image, long [B].
    """

    images: Tensor
    texts: Tensor


@dataclass(frozen=True)
class PairTargets:
    """Whose image each text of a batch is about; what a pass has chosen goes on to the next one, so that both see the same.

    Attributes:
        image_ids: Identity of each pair's image: pairs with the same one are no negatives of each other, long [B].
        memory: None before the first pass of a training step.
        negatives: Likewise.
    """

    image_ids: Tensor
    memory: Memory | None = None
    negatives: Negatives | None = None


@dataclass(frozen=True)
class PairLogits:
    """What a retrieval model gives in training.

    Attributes:
        contrast: Similarities over temperature, of each image and then of each text, float [2 B, B + K].
        match: That a text does not fit an image, and that it does: of the B true pairs, of each text with its wrong image, of
            each image with its wrong text, float [3 B, 2].
        targets: Those of the batch, with what was chosen.
    """

    contrast: Tensor
    match: Tensor
    targets: PairTargets

    @property
    def labels(self) -> Tensor:
        """Classes of ``match``, long [3 B]."""
        return (torch.arange(len(self.match), device=self.match.device) < len(self.match) // 3).long()

    def right(self) -> Tensor:
        """Which pairs are told for what they are, bool [3 B]."""
        return self.match.argmax(1) == self.labels


Logits = Tensor | PairLogits


def parts_of(logits: Logits) -> tuple[Tensor, ...]:
    """The distributions that a model gives, [..., C] each."""
    return (logits.contrast, logits.match) if isinstance(logits, PairLogits) else (logits,)
