"""Retrieval: images against texts, each encoded once and only the fusion run for each pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.models.encodings import joined, moved
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM

UNSCORED = -100.0  # the score of a pair that was not fused, as LAVIS has it


@dataclass(frozen=True)
class EncodedImages:
    """A batch of images.

    Attributes:
        encoding: What the backbone's ``encode_images`` returned, packed.
        ids: Stable identity of each image, long [I].
        taken: What encoding them took, per name a tensor [I].
    """

    encoding: Any  # each backbone has its own
    ids: Tensor
    taken: dict[str, Tensor]

    def to(self, device: torch.device | str) -> EncodedImages:
        """The same with the encoding on another device."""
        return replace(self, encoding=moved(self.encoding, device))


def score_pairs(model: TrimmedVLM, inputs: VLMInputs) -> tuple[Tensor, TrimRecord]:
    """Scores of the pairs of a batch, fp32 [B], as :class:`PairScorer` gives them, and the record of what was kept of each.

    Args:
        model: The model, in evaluation mode; its backbone has a ranking head.
        inputs: The batch, each pair a sample.
    """
    backbone = model.backbone
    if not backbone.share_images:
        inputs = inputs.unshared_images()
    execution = model.execution(inputs, "packed")
    texts = backbone.encode_texts(inputs, execution)
    images = backbone.encode_images(inputs, execution)
    found: Tensor = backbone.fuse(texts, images, inputs, execution)
    return found[:, 0].float(), execution.record


class PairScorer:
    """Scores images against texts that were encoded beforehand, packed.

    The encoders see their own input alone, so that the scores are those of the model run on each pair, to float tolerance
    (docs/retrieval.md). The encoded texts stay on the model's device: 4 bytes times tokens times fusion width.

    Args:
        model: The model, in evaluation mode; its backbone has a ranking head.
        texts: The M texts, in batches without images on the model's device.
        pairs_per_batch: Pairs that run at once.
        on_batch: Called after each batch of texts that was encoded, with their number.

    Raises:
        TypeError: If the backbone has no ranking head.
        ValueError: If there are no texts, or ``pairs_per_batch`` is below 1.
    """

    def __init__(
        self,
        model: TrimmedVLM,
        texts: Iterable[VLMInputs],
        *,
        pairs_per_batch: int = 64,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        if not model.ranks_texts:
            raise TypeError(
                f"the backbone, a {type(model.backbone).__name__}, has no ranking head, so that it cannot score pairs; give it "
                "one (METER: num_classes=None, head_name='rank_output'; BLIP-2: ranks_texts=True), or evaluate with ValLoop "
                "and TestLoop"
            )
        if pairs_per_batch < 1:
            raise ValueError(f"pairs_per_batch={pairs_per_batch}: expected at least 1")
        self.model = model
        self.pairs_per_batch = pairs_per_batch
        encodings, ids, taken = [], [], []
        for inputs in texts:
            execution = self._execution(inputs.sample_ids)
            encodings.append(model.backbone.encode_texts(inputs, execution))
            ids.append(inputs.sample_ids)
            taken.append(execution.record.summary())
            on_batch(len(inputs.sample_ids))
        if not ids:
            raise ValueError("texts is empty: expected the texts that images are ranked against")
        self._texts, self.text_ids = joined(encodings), torch.cat(ids)
        self._of_texts = _over_all(taken)

    def score(
        self, inputs: VLMInputs, *, images: int = 1, on_batch: Callable[[int], None] = lambda _: None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores the images of a batch against all M texts.

        Args:
            inputs: The batch; its texts are not looked at.
            images: As in :meth:`fuse`.
            on_batch: Likewise.

        Returns:
            As :meth:`fuse`.
        """
        encoded = self.encode(inputs)
        pairs = torch.ones(len(encoded.ids), len(self.text_ids), dtype=torch.bool)
        return self.fuse(encoded, pairs, images=images, on_batch=on_batch)

    def encode(self, inputs: VLMInputs) -> EncodedImages:
        """The images of a batch, whose texts are not looked at."""
        execution = self._execution(inputs.image_ids)
        encoding = self.model.backbone.encode_images(replace(inputs, image_index=None), execution)
        return EncodedImages(encoding, inputs.image_ids, execution.record.summary())

    def similarities(self, images: EncodedImages) -> Tensor:
        """How near the images and the texts are before the fusion, fp32 [I, M]."""
        found: Tensor = self.model.backbone.similarities(self._texts, images.encoding)
        return found.float()

    def fuse(
        self,
        encoded: EncodedImages,
        pairs: Tensor,
        *,
        images: int = 1,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores some of the pairs of the images of a batch with the texts.

        Args:
            encoded: The I images, on any device.
            pairs: Which pairs, bool [I, M]; at least one of each image.
            images: Images that the texts serve in all: each bears an equal share of their encoding.
            on_batch: Called after each batch of pairs, with their number.

        Returns:
            Scores, fp32 [I, M], :data:`UNSCORED` where no pair was asked for, and what they took: per name a tensor [I], as
            ``trim`` of :meth:`~smarttrim_mm.models.trimmed_vlm.TrimmedVLM.predict`. Multiply-adds are those of an image with
            its pairs: its encoding, a fusion for each, and its share of the texts.
        """
        device = self.text_ids.device
        encoded = encoded.to(device)
        scores = torch.full(pairs.shape, UNSCORED, device=device)
        each, values = pairs.to(device).nonzero(), []
        for part in each.split(self.pairs_per_batch):
            image, text = part.unbind(1)
            execution = self._execution(self.text_ids[text])
            found = self.model.backbone.fuse(self._texts, encoded.encoding, self._pairs(encoded, image, text), execution)
            scores[image, text] = found[:, 0].float()
            of_pairs = execution.record.summary()
            values.append(torch.stack(list(of_pairs.values())).double())
            on_batch(len(part))
        sums = torch.zeros(len(of_pairs), len(pairs), dtype=torch.double, device=device)
        sums.index_add_(1, each[:, 0], torch.cat(values, 1))
        counts = pairs.sum(1).to(device)
        taken = {name: row if _is_sum(name) else row / counts for name, row in zip(of_pairs, sums, strict=True)}
        shared = {
            name: (value / images if _is_sum(name) else value).expand(len(pairs)) for name, value in self._of_texts.items()
        }
        return scores, _add({name: values.double() for name, values in encoded.taken.items()}, _add(shared, taken))

    def _execution(self, ids: Tensor) -> Execution:
        model = self.model
        return Execution(model.policy, sample_ids=ids, kind="packed", attention=model.attention, token_wise=model.token_wise)

    def _pairs(self, encoded: EncodedImages, image: Tensor, text: Tensor) -> VLMInputs:
        """Says which image and text make a pair; pixels and token ids have been read."""
        none = image.new_empty(0, 0)
        return VLMInputs(
            images=torch.empty(0, 3, 1, 1, device=image.device),
            image_index=image,
            image_ids=encoded.ids,
            input_ids=none,
            text_mask=none.bool(),
            special_mask=none.bool(),
            sample_ids=self.text_ids[text],
            text_index=text,
            text_ids=self.text_ids,
        )


def _is_sum(name: str) -> bool:
    return name.endswith("multiply_adds")


def _over_all(chunks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Multiply-adds summed and ratios averaged over the instances of all chunks."""
    whole = {name: torch.cat([chunk[name] for chunk in chunks]).double() for name in chunks[0]}
    return {name: values.sum() if _is_sum(name) else values.mean() for name, values in whole.items()}


def _add(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    """Multiply-adds of both; each ratio belongs to one alone."""
    return {**one, **other, **{name: one[name] + other[name] for name in one.keys() & other.keys()}}
