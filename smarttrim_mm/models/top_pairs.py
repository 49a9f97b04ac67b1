"""Retrieval by re-ranking: similarities of the encodings choose the pairs that are fused (ALBEF, arXiv 2107.07651)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.models.all_pairs import UNSCORED, EncodedImages, PairScorer
from smarttrim_mm.models.encodings import num_bytes
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.ops.ranking import keep_top, top_of_columns

Gather = Callable[[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class TopScores:
    """A batch of images after re-ranking; :data:`~smarttrim_mm.models.all_pairs.UNSCORED` where a pair was not chosen.

    Attributes:
        of_texts: Scores of the texts that each image chose, fp32 [I, M]: among them its texts are ranked.
        of_images: Scores of the images at the texts that chose them, fp32 [I, M]: a column ranks the images of a text.
        trim: What they took, per name a tensor [I], see :meth:`~smarttrim_mm.models.all_pairs.PairScorer.fuse`.
    """

    of_texts: Tensor
    of_images: Tensor
    trim: dict[str, Tensor]


def check_top_k(model: TrimmedVLM, top_k: int) -> None:
    """Refuses what cannot be re-ranked.

    Raises:
        TypeError: If the backbone gives no similarities to choose by.
        ValueError: If ``top_k`` is below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: expected at least 1, or None for all pairs")
    if not hasattr(model.backbone, "similarities"):
        raise TypeError(
            f"top_k={top_k}, but the backbone, a {type(model.backbone).__name__}, has no similarities() of images and texts "
            "before their fusion, by which pairs could be chosen. Leave top_k out, which scores all pairs"
        )


class TopPairScorer:
    """Scores, for each image, its ``top_k`` most similar texts and, for each text, its ``top_k`` most similar images.

    All images are encoded first (:meth:`add`), as a text chooses among all; then pairs are chosen (:meth:`choose`) and fused
    (:meth:`scores`), one that both directions want once. Ties of similarity go to the earlier text, and to the image with the
    lower number. Encoded images wait in the CPU's memory, packed.

    Args:
        scorer: Has the M texts.
        top_k: How many; more than there are means all.
        images: Number of images of the split.

    Raises:
        TypeError: If the backbone gives no similarities.
        ValueError: If ``top_k`` is below 1.
    """

    def __init__(self, scorer: PairScorer, top_k: int, *, images: int) -> None:
        check_top_k(scorer.model, top_k)
        self.scorer, self.top_k, self.images = scorer, top_k, images
        self._batches: list[EncodedImages] = []
        self._numbers: list[Tensor] = []
        self._rows: list[Tensor] = []  # similarities
        self._offered: list[Tensor] = []
        self._chosen: list[tuple[Tensor, Tensor]] = []  # by the images, by the texts; bool [I, M] each

    @property
    def num_bytes(self) -> int:
        """What the encoded images take, in bytes."""
        return sum(num_bytes(batch.encoding) for batch in self._batches)

    def add(self, inputs: VLMInputs, numbers: Tensor, offered: Tensor | None = None) -> None:
        """Encodes a batch of images.

        Args:
            inputs: The batch; its texts are not looked at.
            numbers: Number of each image in the split, long [I].
            offered: Which of them the texts may choose through this process, bool [I]; None: all. An image that several
                processes have is offered by one.

        Raises:
            ValueError: If a similarity is NaN.
        """
        encoded = self.scorer.encode(inputs)
        rows = self.scorer.similarities(encoded).cpu()
        if rows.isnan().any():
            image = int(encoded.ids[int(rows.isnan().any(1).int().argmax())])
            raise ValueError(f"the similarities of image {image} have NaN: expected numbers; look for the step that gives NaN")
        self._rows.append(rows)
        self._batches.append(encoded.to("cpu"))
        self._numbers.append(numbers)
        self._offered.append(torch.ones_like(numbers, dtype=torch.bool) if offered is None else offered)

    def choose(self, gather: Gather = lambda mine: [mine]) -> int:
        """Chooses the pairs.

        Args:
            gather: Gives what all processes pass to it.

        Returns:
            Number of pairs that this process fuses: those of its images.
        """
        none = torch.zeros(0, len(self.scorer.text_ids))  # of a process that has no images
        rows, numbers = torch.cat([none, *self._rows]), torch.cat([none[:, 0].long(), *self._numbers])
        offered = torch.cat([none[:, 0].bool(), *self._offered])
        best = top_of_columns(rows[offered], numbers[offered, None], self.top_k)
        values, whose = (torch.cat(parts) for parts in zip(*gather(best), strict=True))
        by_texts = torch.zeros(self.images, whose.shape[1], dtype=torch.bool)
        by_texts.scatter_(0, top_of_columns(values, whose, self.top_k)[1], True)
        for batch, row in zip(self._numbers, self._rows, strict=True):
            by_images = keep_top(row, torch.full((len(row),), self.top_k))
            self._chosen.append((by_images, by_texts[batch]))
        self._rows.clear()
        return sum(int((one | other).sum()) for one, other in self._chosen)

    def scores(self, on_batch: Callable[[int], None] = lambda _: None) -> Iterator[TopScores]:
        """Fuses the chosen pairs of one batch after the other, in the order in which they were added.

        Args:
            on_batch: Called after each batch of pairs, with their number.
        """
        for encoded, (by_images, by_texts) in zip(self._batches, self._chosen, strict=True):
            scores, trim = self.scorer.fuse(encoded, by_images | by_texts, images=self.images, on_batch=on_batch)
            of_texts, of_images = (scores.masked_fill(~chosen.to(scores.device), UNSCORED) for chosen in (by_images, by_texts))
            yield TopScores(of_texts, of_images, trim)
