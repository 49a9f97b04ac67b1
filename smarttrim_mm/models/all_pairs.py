"""Retrieval: every image against every text, each encoded once and only the fusion run for each pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.structures import TokenStream


@dataclass(frozen=True)
class _Texts:
    stream: TokenStream
    ids: Tensor


class PairScorer:
    """Scores images against texts that were encoded beforehand, packed.

    The encoders see their own input alone, so that the scores are those of the model run on each pair, to float tolerance
    (docs/retrieval.md). The encoded texts stay on the model's device: 4 bytes times tokens times fusion width.

    Args:
        model: The model, in evaluation mode; its backbone has a ranking head.
        input_ids: Token ids of each of M texts.
        text_ids: Their stable identities, long [M].
        pairs_per_batch: Pairs that run at once.
        on_batch: Called after each batch of texts that was encoded, with their number.

    Raises:
        TypeError: If the backbone has no ranking head.
        ValueError: If there are no texts, or ``pairs_per_batch`` is below 1.
    """

    def __init__(
        self,
        model: TrimmedVLM,
        input_ids: Sequence[Sequence[int]],
        text_ids: Tensor,
        *,
        pairs_per_batch: int = 64,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        if not model.ranks_texts:
            raise TypeError(
                f"the backbone, a {type(model.backbone).__name__}, has no ranking head, so that it cannot score pairs; give it "
                "one (METER: num_classes=None, head_name='rank_output'), or evaluate with ValLoop and TestLoop"
            )
        if pairs_per_batch < 1:
            raise ValueError(f"pairs_per_batch={pairs_per_batch}: expected at least 1")
        if not input_ids:
            raise ValueError("input_ids is empty: expected the texts that images are ranked against")
        self.model = model
        self._chunks: list[_Texts] = []
        taken = []
        for begin in range(0, len(input_ids), pairs_per_batch):
            chunk = slice(begin, begin + pairs_per_batch)
            inputs = model.data_preprocessor.texts(input_ids[chunk], text_ids[chunk])
            execution = self._execution(inputs.sample_ids)
            stream = model.backbone.encode_texts(inputs, execution)
            self._chunks.append(_Texts(stream, inputs.sample_ids))
            taken.append(execution.record.summary())
            on_batch(len(inputs.sample_ids))
        self._of_texts = _over_all(taken)

    def score(
        self, inputs: VLMInputs, *, images: int = 1, on_batch: Callable[[int], None] = lambda _: None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores the images of a batch against all M texts.

        Args:
            inputs: The batch; its texts are not looked at.
            images: Images that the texts serve in all: each bears an equal share of their encoding.
            on_batch: Called after each batch of pairs, with their number.

        Returns:
            Scores, fp32 [I, M], and what they took: per name a tensor [I], as ``trim`` of
            :meth:`~smarttrim_mm.models.trimmed_vlm.TrimmedVLM.predict`. Multiply-adds are those of an image with all its
            pairs: its encoding, M fusions, and its share of the texts.
        """
        alone = replace(inputs, image_index=None)
        execution = self._execution(alone.image_ids)
        encoded = self.model.backbone.encode_images(alone, execution)
        of_images = execution.record.summary()
        scores, trims = [], []
        for i in range(len(alone.image_ids)):
            row, of_pairs = [], []
            for texts in self._chunks:
                execution = self._execution(texts.ids)
                row.append(self.model.backbone.fuse(texts.stream, encoded, _pairs(alone, i, texts), execution)[0].float())
                of_pairs.append(execution.record.summary())
                on_batch(len(texts.ids))
            scores.append(torch.cat(row))
            of_image = {name: values[i].double() for name, values in of_images.items()}
            shared = {name: value / images if _is_sum(name) else value for name, value in self._of_texts.items()}
            trims.append(_add(of_image, _add(shared, _over_all(of_pairs))))
        return torch.stack(scores), {name: torch.stack([trim[name] for trim in trims]) for name in trims[0]}

    def _execution(self, ids: Tensor) -> Execution:
        return Execution(self.model.policy, sample_ids=ids, kind="packed")


def _pairs(images: VLMInputs, image: int, texts: _Texts) -> VLMInputs:
    """One image with each of the texts."""
    index = torch.full_like(texts.ids, image)
    return replace(images, image_index=index, text_index=None, sample_ids=texts.ids, pairs_per_sample=len(index))


def _is_sum(name: str) -> bool:
    return name.endswith("multiply_adds")


def _over_all(chunks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Multiply-adds summed and ratios averaged over the instances of all chunks."""
    whole = {name: torch.cat([chunk[name] for chunk in chunks]).double() for name in chunks[0]}
    return {name: values.sum() if _is_sum(name) else values.mean() for name, values in whole.items()}


def _add(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    """Multiply-adds of both; each ratio belongs to one alone."""
    return {**one, **other, **{name: one[name] + other[name] for name in one.keys() & other.keys()}}
