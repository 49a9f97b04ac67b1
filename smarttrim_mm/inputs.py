"""What a model gets: batches of images and texts, and what it should answer. The letters are those of ``structures.py``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from smarttrim_mm.pairs import PairLogits, PairTargets


@dataclass(frozen=True)
class TextTargets:
    """Texts that a decoder should give: one or more for each sample.

    Attributes:
        input_ids: Token ids, begin and end tokens included, padded on the right, long [A, L].
        mask: True at real tokens, bool [A, L].
        weights: How much each text counts, float [A].
        sample: Which sample each belongs to, ascending, long [A].
        samples: Number of samples G.
    """

    input_ids: Tensor
    mask: Tensor
    weights: Tensor
    sample: Tensor
    samples: int

    @property
    def tokens(self) -> Tensor:
        """What is to be given at each place, text by text: all tokens but the first of each, long [K]."""
        return self.input_ids[:, 1:][self.mask[:, 1:]]

    @property
    def token_weights(self) -> Tensor:
        """The weights of the tokens' texts, float [K]."""
        return self.weights[:, None].expand_as(self.mask[:, 1:])[self.mask[:, 1:]]

    def at_tokens(self, values: Tensor) -> Tensor:
        """What a decoder gave for the next token at every place of the texts, [A, L, ...] -> [K, ...]."""
        return values[:, :-1][self.mask[:, 1:]]

    def to(self, device: torch.device | str) -> TextTargets:
        """The same texts on another device."""
        ids, mask, weights, sample = (one.to(device) for one in (self.input_ids, self.mask, self.weights, self.sample))
        return TextTargets(ids, mask, weights, sample, self.samples)

    def select(self, samples: Tensor) -> TextTargets:
        """The texts of some of the samples, in the given order (long [g])."""
        rows = torch.cat([(self.sample == sample).nonzero().squeeze(1) for sample in samples])
        sample = torch.cat([torch.full_like(self.sample[self.sample == one], i) for i, one in enumerate(samples)])
        return TextTargets(self.input_ids[rows], self.mask[rows], self.weights[rows], sample, len(samples))


@dataclass(frozen=True)
class BoxTargets:
    """The boxes that texts point at, whose coordinates a decoder should give one after the other.

    Attributes:
        boxes: Centre x, centre y, width and height, as shares of the image's width and height, float [G, 4].
    """

    boxes: Tensor

    def bins(self, count: int) -> Tensor:
        """Numbers of the coordinates among ``count`` even steps from 0 to 1, rounded down, long [G, 4]."""
        return (self.boxes * (count - 1)).long()

    def to(self, device: torch.device | str) -> BoxTargets:
        """The same boxes on another device."""
        return BoxTargets(self.boxes.to(device))


Targets = Tensor | TextTargets | BoxTargets | PairTargets


@dataclass(frozen=True)
class VLMInputs:
    """A batch of image-text pairs; several texts may share one image, and several images one text.

    Attributes:
        images: Normalised pixels, [I, 3, height, width].
        image_index: Which image each text is about, long [B]; None: each has its own, in order.
        image_ids: Stable identity of each image, long [I].
        input_ids: Token ids, padded on the right, long [Q, T].
        text_mask: True at real tokens, bool [Q, T].
        special_mask: True at tokens that no policy may drop (``<s>``, ``</s>``), bool [Q, T].
        sample_ids: Stable identity of each pair, long [B].
        targets: Class indices, long [G], or soft targets, float [G, C], or texts or boxes for a decoder, or what a training of
            retrieval compares; None where unknown.
        text_index: Which text each pair reads, long [B]; None: each has its own, in order.
        text_ids: Stable identity of each text, long [Q]; None: that of its pair.
        pairs_per_sample: Consecutive pairs that are answered together, G = B / pairs_per_sample: the two images of a sentence
            of NLVR2, the captions that are ranked for an image.

    A batch of texts alone, or of images alone, has none of the other (I = 0 or Q = 0).
    """

    images: Tensor
    image_index: Tensor | None
    image_ids: Tensor
    input_ids: Tensor
    text_mask: Tensor
    special_mask: Tensor
    sample_ids: Tensor
    targets: Targets | None = None
    text_index: Tensor | None = None
    text_ids: Tensor | None = None
    pairs_per_sample: int = 1

    @classmethod
    def of_images(cls, images: Tensor, ids: Tensor, targets: Tensor | None = None) -> VLMInputs:
        """A batch of images without texts, each a sample of its own.

        Args:
            images: Normalised pixels, [I, 3, height, width].
            ids: Stable identities, of the images and so of the samples, long [I].
            targets: As in the class.
        """
        ids_of_none = ids.new_empty(0, 0)
        none = ids_of_none.bool()
        return cls(images, None, ids, ids_of_none, none, none, sample_ids=ids, targets=targets)

    def to(self, device: torch.device | str) -> VLMInputs:
        """The same batch on another device."""
        kinds = (Tensor, TextTargets, BoxTargets)
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, kinds)}
        return replace(self, **moved)

    def after(self, logits: Tensor | PairLogits | None) -> VLMInputs:
        """The batch for the next pass of a training step, which keeps what a pass has chosen."""
        return replace(self, targets=logits.targets) if isinstance(logits, PairLogits) else self

    def unshared_images(self) -> VLMInputs:
        """The same pairs, each with an image of its own."""
        if self.image_index is None:
            return self
        return replace(self, images=self.images[self.image_index], image_index=None, image_ids=self.image_ids[self.image_index])

    def unshared(self) -> VLMInputs:
        """The same pairs, each with an image and a text of its own, as an application without a cache would send them."""
        every = self.unshared_images()
        if every.text_index is None:
            return every
        return replace(
            every,
            input_ids=every.input_ids[every.text_index],
            text_mask=every.text_mask[every.text_index],
            special_mask=every.special_mask[every.text_index],
            text_ids=None if every.text_ids is None else every.text_ids[every.text_index],
            text_index=None,
        )

    def all_pairs(self) -> VLMInputs:
        """Every image with every text of the batch: a sample is an image and its Q alternatives.

        Targets are those of retrieval, float [I, Q]: 1 where the text is about the image in this batch.

        Raises:
            ValueError: If a text is read with several images.
        """
        if self.text_index is not None:
            raise ValueError("text_index is given: a text of several images has no image that it would be ranked for")
        images, texts = len(self.image_ids), len(self.input_ids)
        numbers = torch.arange(images, device=self.input_ids.device)
        own = numbers if self.image_index is None else self.image_index
        text_ids = self.sample_ids if self.text_ids is None else self.text_ids
        return replace(
            self,
            image_index=numbers.repeat_interleave(texts),
            text_index=torch.arange(texts, device=numbers.device).repeat(images),
            text_ids=text_ids,
            sample_ids=text_ids.repeat(images),
            targets=(own == numbers[:, None]).float(),
            pairs_per_sample=texts,
        )

    def select(self, samples: Tensor) -> VLMInputs:
        """Some of the samples, in the given order (long [g]), unshared and without columns that are all padding."""
        every = self.unshared()
        steps = torch.arange(self.pairs_per_sample, device=samples.device)
        rows = (samples[:, None] * self.pairs_per_sample + steps).flatten()
        texts = rows[: len(every.input_ids)]  # none of a batch of images alone
        width = max(every.text_mask[texts].sum(1).tolist(), default=0)
        return VLMInputs(
            images=every.images[rows],
            image_index=None,
            image_ids=every.image_ids[rows],
            input_ids=every.input_ids[texts, :width],
            text_mask=every.text_mask[texts, :width],
            special_mask=every.special_mask[texts, :width],
            sample_ids=every.sample_ids[rows],
            targets=_select(every.targets, samples),
            text_ids=None if every.text_ids is None else every.text_ids[rows],
            pairs_per_sample=self.pairs_per_sample,
        )


def _select(targets: Targets | None, samples: Tensor) -> Tensor | TextTargets | BoxTargets | None:
    if isinstance(targets, PairTargets):
        raise ValueError("targets are those of a training step of retrieval, which belong to its whole batch; select before it")
    if isinstance(targets, TextTargets):
        return targets.select(samples)
    if isinstance(targets, BoxTargets):
        return BoxTargets(targets.boxes[samples])
    return None if targets is None else targets[samples]
