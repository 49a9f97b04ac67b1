"""What a model that contrasts is taught: which images and texts belong together, among pairs that it confuses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softmax


@dataclass(frozen=True)
class Memory:
    """What a batch is compared with: features of momentum encoders, of the batch itself (first) and of K earlier pairs.

    Attributes:
        images: float [E, B + K].
        texts: Likewise.
    """

    images: Tensor
    texts: Tensor


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
        wanted: Soft targets, of each image among the texts and then of each text among the images, float [2 B, B + K]; None
            before the first pass of a training step that makes them of momentum encoders.
        words: What follows each token of the texts, text by text, long [K]; None: no text is to be given.
        memory: None before the first pass of a training step, or without momentum encoders.
        negatives: None before the first pass of a training step.
    """

    image_ids: Tensor
    wanted: Tensor | None = None
    words: Tensor | None = None
    memory: Memory | None = None
    negatives: Negatives | None = None


@dataclass(frozen=True)
class PairLogits:
    """What a model that contrasts gives in training.

    Attributes:
        contrast: Similarities over temperature, of each image and then of each text, float [2 B, B + K].
        match: That a text does not fit an image, and that it does: of the B true pairs, of each text with its wrong image, of
            each image with its wrong text, float [3 B, 2].
        targets: Those of the batch, with what was chosen.
        words: What follows each token of the texts, of V words, float [K, V]; None of a model that gives no texts.
    """

    contrast: Tensor
    match: Tensor
    targets: PairTargets
    words: Tensor | None = None

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
    if not isinstance(logits, PairLogits):
        return (logits,)
    return tuple(part for part in (logits.contrast, logits.match, logits.words) if part is not None)


@torch.no_grad()
def draw_negatives(hardness: tuple[Tensor, Tensor], image_ids: Tensor, least: float = 0.0) -> Negatives:
    """Negatives by hardness; of equal chance where none is likely enough for a number of its own.

    Args:
        hardness: How much each image is taken for each text, and each text for each image, as logits, [B, B] both.
        image_ids: As in :class:`PairTargets`.
        least: Added to every chance.
    """
    same = image_ids[:, None] == image_ids
    drawn = []
    for logits in hardness:
        weights = (softmax(logits, 1) + least).masked_fill(same, 0)
        weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, (~same).to(weights.dtype))
        drawn.append(torch.cat([torch.multinomial(row, 1) for row in weights]))
    return Negatives(*drawn)
