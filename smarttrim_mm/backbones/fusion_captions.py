"""Backbones that caption: a decoder that reads an image and continues a text about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from mmpretrain.structures import DataSample
from torch import Tensor

from smarttrim_mm.backbones.fusion_answers import Decode, FusionDecoding
from smarttrim_mm.backbones.writing import Writing
from smarttrim_mm.inputs import TextTargets, VLMInputs
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.models.predictions import write_scores
from smarttrim_mm.registry import TOKENIZERS
from smarttrim_mm.structures import TokenStream


class FusionCaptioner(FusionDecoding):
    """A model that writes about an image.

    There is no text encoder: the policy acts in the image encoder alone, and the decoder reads what is left of the image, so
    that dropping some makes it cheaper. No gradient goes through what the decoder does not read: a decision learns from the
    layers of the image encoder.

    The texts of a batch are what the decoder has been given so far, without their end tokens: a prompt, ``a picture of``.

    Args:
        generation: Settings of :class:`~smarttrim_mm.backbones.writing.Writing`: what predictions are captions by;
            None: they are the scores of the next token.
        tokenizer: Config of a tokenizer (registry ``TOKENIZERS``), that of the pipeline: for captions, and for a prompt that
            is text.
        **kwargs: Those of the host's adapter.

    Raises:
        ValueError: If ``text_first`` is set, the generation's settings do not fit, or there is no tokenizer for texts.
    """

    decodes = ("captions", "image")

    def __init__(
        self,
        *,
        generation: Mapping[str, Any] | None = None,
        tokenizer: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # first: hosts' constructors ask for the prompt's tokens
        self.tokenizer = None if tokenizer is None else TOKENIZERS.build(tokenizer)
        super().__init__(**kwargs)
        self.set_generation(generation)

    def check_host(self) -> None:
        """Refuses to be guided by a text.

        Raises:
            ValueError: If ``text_first`` is set.
        """
        if self.text_first:
            raise ValueError(f"text_first=True: {self.arch} has no text to guide the image encoder by; leave text_first out")

    @property
    def text_config(self) -> Any:
        """The decoder's configuration."""
        return self.decoder.config

    @property
    def input_format(self) -> dict[str, int]:
        """See :class:`~smarttrim_mm.backbones.fusion.FusionBackbone`; a class is a token."""
        own = super().input_format
        return {**own, "max_text_length": own["max_text_length"] + 1, "num_classes": own["vocab_size"]}

    @cached_property
    def steps(self) -> dict[str, list[LayerStep]]:
        """Views of the image encoder's layers."""
        return {"image": self.image_steps()}

    def encode(self, inputs: VLMInputs, execution: Execution) -> TokenStream:
        """Runs the image encoder: what is left of each sample's image.

        Raises:
            ValueError: If the samples have another number of images than one, or the images another size.
        """
        self.check(inputs)
        if not self.share_images:
            inputs = inputs.unshared_images()
        image = self.read_images(inputs, execution, {})
        every = torch.arange(len(inputs.sample_ids), device=inputs.sample_ids.device)
        return image.expand(every if inputs.image_index is None else inputs.image_index, inputs.sample_ids)

    def forward(self, inputs: VLMInputs, execution: Execution) -> Tensor:
        """Runs the model under the execution's policy.

        Args:
            inputs: The batch. Its texts are what the decoder has been given so far; its targets choose what is returned.
            execution: Policy, kind of execution, and record.

        Returns:
            If the targets are texts: they continue those of the batch, and these are the logits of their tokens, [K, V].
            Otherwise the logits of the next token, [G, V].

        Raises:
            ValueError: As :meth:`encode`.
        """
        return self._next(inputs, self._decoder(self.encode(inputs, execution), execution))

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """The host's own encoder and decoder.

        Args:
            inputs: The batch.

        Returns:
            As :meth:`forward`.
        """
        states, mask = self.host_memory(inputs)
        return self._next(inputs, lambda ids, real, index: self._decode(ids, real, states[index], mask[index]))

    def generate(self, inputs: VLMInputs, execution: Execution, how: Writing | None = None, captions: int = 1) -> Tensor:
        """Writes about the images; what beam search gives does not depend on what else is in the batch.

        Args:
            inputs: The batch; its texts are continued.
            execution: Policy, kind of execution, and record.
            how: Settings; None: the config's, or else the defaults.
            captions: Of each sample.

        Returns:
            Token ids, those of the texts included, long [G captions, L].

        Raises:
            ValueError: As :meth:`encode`, and if the texts differ in length.
        """
        given = inputs.text_mask.sum(1) - 1
        if (given != given[0]).any():
            raise ValueError(f"texts of a batch have {(given + 1).tolist()} tokens; expected one prompt for all to continue")
        memory = self.encode(inputs, execution)
        rows = torch.arange(len(given), device=given.device).repeat_interleave(captions)
        begun = self._begun(inputs.input_ids)[rows, : int(given[0])]
        return self._write(begun, memory, rows, execution, how or self.generation or Writing())

    def predict(self, inputs: VLMInputs, execution: Execution, data_samples: Sequence[DataSample]) -> None:
        """Fills in ``pred_caption``, a text; without ``generation``, ``pred_scores`` of the next token.

        Args:
            inputs: The batch.
            execution: Policy, kind of execution, and record.
            data_samples: One per image.

        Raises:
            ValueError: If an image has several texts to continue.
        """
        if self.generation is None:
            write_scores(self(inputs, execution), data_samples)
            return
        counts = [len(sample.questions) for sample in data_samples]
        if set(counts) != {1}:
            raise ValueError(f"images of the batch have {counts} texts to continue; expected one each, the prompt")
        assert self.tokenizer is not None
        begin = int(inputs.text_mask[0].sum()) - 1
        for sample, ids in zip(data_samples, self.generate(inputs, execution).tolist(), strict=True):
            sample.set_field(self.tokenizer.decode(ids[begin:]), "pred_caption", dtype=str)

    def _next(self, inputs: VLMInputs, decode: Decode) -> Tensor:
        given, real, targets = self._begun(inputs.input_ids)[:, :-1], inputs.text_mask[:, 1:], inputs.targets
        if isinstance(targets, TextTargets):
            ids, mask, asked = _continued(given[targets.sample], real[targets.sample], targets)
            return decode(ids, mask, targets.sample)[:, :-1][asked[:, 1:]]
        every = torch.arange(len(given), device=given.device)
        return decode(given, real, every)[every, real.sum(1) - 1]


def _continued(given: Tensor, real: Tensor, texts: TextTargets) -> tuple[Tensor, Tensor, Tensor]:
    """Each text behind what was given before it.

    Args:
        given: Token ids, padded, long [A, t].
        real: True at real ones, bool [A, t].
        texts: Of each a first token is left out, [A, L].

    Returns:
        Token ids, padded on the right, where they are real, and where they are the texts', [A, longest] each.
    """
    more = texts.mask[:, 1:]
    ids = torch.cat([given, texts.input_ids[:, 1:]], 1)
    both, asked = torch.cat([real, more], 1), torch.cat([torch.zeros_like(real), more], 1)
    order = (~both).byte().argsort(dim=1, stable=True)[:, : int(both.sum(1).max())]
    return ids.gather(1, order), both.gather(1, order), asked.gather(1, order)
