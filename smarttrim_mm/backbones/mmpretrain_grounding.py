"""mmpretrain's BLIP that tells where in an image a phrase points (RefCOCO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmpretrain.structures import DataSample
from torch import Tensor

from smarttrim_mm.backbones.fusion import linears
from smarttrim_mm.backbones.fusion_answers import Decode, FusionDecoding
from smarttrim_mm.backbones.given_tokens import CoordinateTokens
from smarttrim_mm.backbones.mmpretrain_blip import MMPretrainBlip, _small_bert, _small_vit
from smarttrim_mm.inputs import BoxTargets, VLMInputs
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.models.predictions import answers_of, write_scores
from smarttrim_mm.ops.boxes import corners
from smarttrim_mm.registry import MMPRETRAIN_MODELS

_COORDINATES = 4  # centre x, centre y, width, height, in the order in which they are written


@MMPRETRAIN_MODELS.register_module("BlipGrounding")
class BlipGrounding(FusionDecoding, MMPretrainBlip):
    """A box that a phrase points at: a decoder writes its coordinates, each one of C = 641 tokens.

    The phrase goes through an encoder of its own, and then through another that reads the image. The decoder is the host's and
    runs whole. It reads what is left of image and phrase, so that dropping some of either makes it cheaper; no gradient goes
    through what it does not read: a decision learns from the layers of the encoders.

    ``text_first`` costs nothing, as the phrase's own encoder does not read the image.

    Args:
        **kwargs: Those of :class:`~smarttrim_mm.backbones.mmpretrain_blip.MMPretrainBlip`.

    Raises:
        ValueError: If the host cannot be trimmed.
    """

    decodes = ("box", "image")
    vision_name = "visual_encoder"
    bert_config = ("text_encoder", "med_config")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # nothing reads these; processes that train together wait for the gradients of all others
        idle = [layer.crossattention for layer in self.uni_modal() if hasattr(layer, "crossattention")]
        for part in (*idle, self.host.multimodal_encoder.embeddings):
            part.requires_grad_(False)

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Small configs; the vocabulary has the tokens of coordinates."""
        sizes = {"vocab_size": 1000, "hidden_size": 24}
        model = {
            "type": "BlipGrounding",
            "visual_encoder": _small_vit(2),
            "text_encoder": {"type": "XBertEncoder", "med_config": _small_bert(1, **sizes)},
            "multimodal_encoder": {"type": "XBertEncoder", "med_config": _small_bert(2, **sizes)},
            "head": {
                "type": "GroundingHead",
                "decoder": {"type": "XBertLMHeadDecoder", "med_config": _small_bert(2, **sizes)},
            },
        }
        return {"text first": {"model": model, "text_first": True}}

    def host_tokenizer(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`~smarttrim_mm.backbones.mmpretrain_blip.MMPretrainBlip`, like the next ones."""
        return {**super().host_tokenizer(model), "type": CoordinateTokens}

    def check_host(self) -> None:
        """Refuses a host whose streams cannot be read as one.

        Raises:
            ValueError: If image and phrase differ in width.
        """
        widths = self.vision.width, int(self.host.multimodal_encoder.config.hidden_size)
        if widths[0] != widths[1]:
            raise ValueError(
                f"visual_encoder has width {widths[0]} and multimodal_encoder {widths[1]}; expected one width, as the decoder "
                "reads image and phrase as one"
            )

    @property
    def text_encoder(self) -> Any:
        return self.host.text_encoder

    @property
    def decoder(self) -> Any:
        return self.host.grounding_head.decoder

    @property
    def num_steps(self) -> int:
        """C, the values that a coordinate has: even steps from 0 to 1."""
        return int(self.host.grounding_head.image_res) + 1

    @property
    def input_format(self) -> dict[str, int]:
        return {**super().input_format, "num_classes": self.num_steps}

    def uni_modal(self) -> list[Any]:
        """The layers of the phrase's own encoder; their cross-attention, if there is one, is not run."""
        return list(self.text_encoder.encoder.layer)

    def fusing(self) -> list[Any]:
        """The layers in which the phrase reads the image."""
        return list(self.host.multimodal_encoder.encoder.layer)

    def forward(self, inputs: VLMInputs, execution: Execution) -> Tensor:
        """Runs the model under the execution's policy.

        Args:
            inputs: The batch. Its targets choose what is returned.
            execution: Policy, kind of execution, and record.

        Returns:
            If the targets are boxes: logits of their coordinates, each given those before it, [4 G, C]. Otherwise a box is
            written, and these are the logits of its first coordinate, [G, C].

        Raises:
            ValueError: If the samples have another number of images than one, or the images another size.
        """
        return self._answer(inputs, self._decoder_of_both(inputs, execution))

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """Mmpretrain's own encoders and decoder.

        Args:
            inputs: The batch.

        Returns:
            As :meth:`forward`.
        """
        states, mask = self.host_memory(inputs)
        return self._answer(inputs, lambda ids, real, index: self._decode(ids, real, states[index], mask[index]))

    def host_memory(self, inputs: VLMInputs) -> tuple[Tensor, Tensor]:
        """What mmpretrain's own encoders give the decoder to read, [G, P + 1 + T, D], and where it is real, bool."""
        self.check(inputs)
        pairs, host = inputs.unshared(), self.host
        images, words = self.host_images(pairs.images), pairs.text_mask.long()
        text = host.text_encoder(pairs.input_ids, attention_mask=words, mode="text", return_dict=True).last_hidden_state
        seen = torch.ones(images.shape[:2], dtype=torch.long, device=images.device)
        text = host.multimodal_encoder(
            encoder_embeds=text,
            attention_mask=words,
            encoder_hidden_states=images,
            encoder_attention_mask=seen,
            return_dict=True,
        ).last_hidden_state
        return torch.cat([images, text], 1), torch.cat([seen, words], 1).bool()

    def predict(self, inputs: VLMInputs, execution: Execution, data_samples: Sequence[DataSample]) -> None:
        """Fills in ``pred_bboxes`` [Q, 4], and ``pred_scores`` [Q, C], the probabilities of the first coordinate.

        Boxes are left, top, right, bottom in pixels: of the model's image, or, with the sample's ``scale_factor`` (how many
        times as wide and as high that is as the file's), of the file's. ``gt_bboxes`` are brought there too, as mmpretrain
        does.

        Args:
            inputs: The batch.
            execution: Policy, kind of execution, and record.
            data_samples: One per image.
        """
        logits, steps = self._locate(len(inputs.sample_ids), self._decoder_of_both(inputs, execution))
        write_scores(logits, data_samples)
        height, width = inputs.images.shape[-2:]
        boxes = corners(steps / (self.num_steps - 1)).clamp(0, 1) * steps.new_tensor([width, height] * 2)
        for sample, own in zip(data_samples, boxes.split([answers_of(sample) for sample in data_samples]), strict=True):
            scale = torch.tensor([*sample.get("scale_factor", (1.0, 1.0))] * 2, dtype=torch.float32)
            sample.set_field(own / scale.to(own), "pred_bboxes", dtype=Tensor)
            if "gt_bboxes" in sample:
                sample.set_field(torch.as_tensor(sample.gt_bboxes) / scale, "gt_bboxes", dtype=Tensor)

    def _decoder_of_both(self, inputs: VLMInputs, execution: Execution) -> Decode:
        """The decoder on what is left of image and phrase; every run of it is recorded."""
        streams = self.encode_both(inputs, execution)
        states, masks = zip(*(streams[name].pad() for name in ("image", "text")), strict=True)
        memory, seen = torch.cat(states, 1), torch.cat(masks, 1)

        def decode(ids: Tensor, real: Tensor, index: Tensor) -> Tensor:
            execution.decoder(
                {"image": self.decoder_layers},
                streams["image"],
                real.sum(1),
                index,
                name="decoder.box",
                per_token=sum(linear.weight.numel() for linear in linears(self.decoder.cls)),
                padded=real.shape[1],
                beside={"text": streams["text"]},
            )
            return self._decode(ids, real, memory[index], seen[index])

        return decode

    def _answer(self, inputs: VLMInputs, decode: Decode) -> Tensor:
        if isinstance(inputs.targets, BoxTargets):
            return self._coordinates(inputs.targets.bins(self.num_steps), decode)[:, :-1].flatten(0, 1)
        return self._locate(len(inputs.sample_ids), decode)[0]

    def _locate(self, samples: int, decode: Decode) -> tuple[Tensor, Tensor]:
        """Writes the likeliest coordinates, one after the other.

        Returns:
            Logits of the first, [G, C], and which of the C values each is, long [G, 4].
        """
        steps = self.host.grounding_head.prefix_ids.new_empty(samples, 0)
        first: Tensor | None = None
        for _ in range(_COORDINATES):
            with torch.set_grad_enabled(torch.is_grad_enabled() and first is None):
                logits = self._coordinates(steps, decode)[:, -1]
            first = logits if first is None else first
            steps = torch.cat([steps, logits.argmax(1, keepdim=True)], 1)
        assert first is not None
        return first, steps

    def _coordinates(self, steps: Tensor, decode: Decode) -> Tensor:
        """Logits of what follows the prefix and each of the coordinates that are given, long [G, t] -> [G, t + 1, C].

        The host gives all tokens that are no coordinates a logit lower by 10,000, and so no probability.
        """
        head = self.host.grounding_head
        begin = int(head.bin_start_idx)  # on the host
        ids = torch.cat([head.prefix_ids.expand(len(steps), 1), steps + begin], 1)
        every = torch.arange(len(steps), device=steps.device)
        return decode(ids, torch.ones_like(ids, dtype=torch.bool), every)[..., begin : begin + self.num_steps]
