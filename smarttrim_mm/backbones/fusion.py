"""Backbones whose texts read images: a ViT, and a BERT whose layers, or upper layers, attend to what the ViT gave.

BLIP (Li et al., arXiv 2201.12086) and ALBEF (arXiv 2107.07651) are such models. What is here knows no library: a host's adapter
says where the parts are (:class:`FusionBackbone`), and builds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.bert_views import bert_view
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.views import LayerStep, LayerView
from smarttrim_mm.pairs import PairLogits
from smarttrim_mm.structures import TokenStream

_CLS, _SEP = 101, 102  # bert-base-uncased


class ImageEncoder(Protocol):
    """The adapter of a ViT.

    Attributes:
        image_size: Height and width of the images in pixels.
        patches: Number of patches of an image.
        patch_weight: What makes a patch's embedding, for its count.
        width: D.
    """

    @property
    def image_size(self) -> tuple[int, int]: ...

    @property
    def patches(self) -> int: ...

    @property
    def patch_weight(self) -> Tensor: ...

    @property
    def width(self) -> int: ...

    def embed(self, images: Tensor) -> Tensor:
        """[I, 3, height, width] -> [I, P + 1, D], the class token first."""

    def views(self, stream: str) -> list[LayerView]:
        """Views of the layers."""

    def norm(self, x: Tensor) -> Tensor:
        """What comes behind the last layer, [..., D] -> [..., D]."""


class FusionBackbone(nn.Module):
    """A host model whose text encoder reads images.

    A host's adapter sets ``host`` and calls :meth:`adopt`.

    Attributes:
        host: The host model.
        arch: Its name, for messages.
        text_first: Whether the text's [CLS] guides the policy inside the image encoder. Each pair then has an image encoding
            of its own.
        share_images: Whether texts of one batch that ask about the same image share its encoding.
    """

    host: Any  # hosts have no types
    arch: str
    size_setting = "vision.img_size"  # where the backbone's config has the images' size
    images_per_text = 1
    encodes = False  # whether [ENC] takes the place of [CLS] in the multi-modal encoder
    anew: frozenset[str] = frozenset()  # streams that enter the fusion stage whole again

    def adopt(self, host: Any, arch: str, text_first: bool, share_images: bool | None) -> None:
        """Takes a host model in.

        Args:
            host: The model.
            arch: Its name.
            text_first: See the attribute.
            share_images: Likewise; None: unless ``text_first``.

        Raises:
            ValueError: If the two exclude each other, or the host cannot be trimmed.
        """
        if text_first and share_images:
            raise ValueError(
                "text_first=True and share_images=True exclude each other: an image encoding that the text has guided belongs "
                "to that text alone. Leave share_images out, or set text_first=False."
            )
        self.arch, self.host, self.text_first = arch, host, text_first
        self.share_images = not text_first if share_images is None else share_images
        self.check_host()

    def check_host(self) -> None:
        """Refuses a host that cannot be trimmed.

        Raises:
            ValueError: If no layer of the text encoder reads the image.
        """
        if "fusion" not in self.steps:
            config = self.text_config.to_dict()
            why = "add_cross_attention is False; expected True"
            if "fusion_layer" in config:
                why = (
                    f"text.fusion_layer is {config['fusion_layer']} of {config['num_hidden_layers']} layers; expected fewer "
                    "uni-modal layers"
                )
            raise ValueError(f"no layer of the text encoder reads the image: {why}")

    @property
    def vision(self) -> ImageEncoder:
        """The image encoder's adapter."""
        raise NotImplementedError(f"{type(self).__name__} does not define vision")

    @property
    def text_encoder(self) -> Any:
        """The text encoder: a BERT with ``embeddings``, ``encoder.layer`` and ``config``."""
        raise NotImplementedError(f"{type(self).__name__} does not define text_encoder")

    @property
    def input_format(self) -> dict[str, int]:
        """Sizes and token ids of the inputs and answers, see :func:`smarttrim_mm.utils.random_inputs.random_inputs`."""
        config = self.text_config
        return {
            "image_size": self.image_size[0],
            "vocab_size": config.vocab_size,
            "begin_id": _CLS if config.bos_token_id is None else config.bos_token_id,
            "end_id": _SEP if config.eos_token_id is None else config.eos_token_id,
            "pad_id": config.pad_token_id,
            "max_text_length": config.max_position_embeddings,
            "images_per_text": self.images_per_text,
        }

    @property
    def text_config(self) -> Any:
        """The configuration of the texts' transformer, as transformers has it."""
        return self.text_encoder.config

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.vision.image_size

    @cached_property
    def steps(self) -> dict[str, list[LayerStep]]:
        """Views of all layers by stage, in the order of execution: ``image``, ``text`` (uni-modal, if any), ``fusion``."""
        text = [LayerStep(f"text.{i}", {"text": bert_view(layer, "text")}) for i, layer in enumerate(self.uni_modal())]
        image = self.image_steps()
        fusion = [
            LayerStep(
                f"fusion.{i}",
                {"text": bert_view(layer, "text", *self.reads(i))},
                memories=dict.fromkeys(self.reads(i), self.vision.width),
                anew=self.anew if i == 0 else frozenset(),
            )
            for i, layer in enumerate(self.fusing())
        ]
        stages = {"text": text, "image": image} if self.text_first else {"image": image, "text": text}
        return {name: steps for name, steps in {**stages, "fusion": fusion}.items() if steps}

    def uni_modal(self) -> list[Any]:
        """The text encoder's layers that run before the image is read: in ALBEF, those without cross-attention."""
        return [layer for layer in self.text_encoder.encoder.layer if not hasattr(layer, "crossattention")]

    def fusing(self) -> list[Any]:
        """The layers in which the text reads the image."""
        return [layer for layer in self.text_encoder.encoder.layer if hasattr(layer, "crossattention")]

    def image_steps(self) -> list[LayerStep]:
        """Views of the image encoder's layers."""
        guides = {"text": self.text_config.hidden_size} if self.text_first else {}
        return [LayerStep(f"image.{i}", {"image": view}, guides) for i, view in enumerate(self.vision.views("image"))]

    @cached_property
    def ahead(self) -> list[LayerStep]:
        """Views of the text encoder's layers without their cross-attention: BLIP's uni-modal mode."""
        layers = self.text_encoder.encoder.layer
        return [LayerStep(f"ahead.{i}", {"text": bert_view(layer, "text")}) for i, layer in enumerate(layers)]

    def reads(self, index: int) -> tuple[str, ...]:
        """The image streams that a layer of the fusion stage reads."""
        return ("image",)

    def embed_text(self, inputs: VLMInputs, first: Tensor, encodes: bool) -> TokenStream:
        """Embeddings of the texts, padded: [A, T, D].

        Args:
            inputs: The batch.
            first: The pair whose text each answer is about, long [A].
            encodes: Whether [ENC], the last id of BLIP's vocabulary, takes the place of [CLS].
        """
        rows = first if inputs.text_index is None else inputs.text_index[first]
        ids = inputs.input_ids[rows]
        if encodes:
            ids[:, 0] = self.enc_token_id
        x = self.text_encoder.embeddings(input_ids=ids)
        mask, special = inputs.text_mask[rows], inputs.special_mask[rows]
        return TokenStream.start(x, ids=inputs.sample_ids[first], valid=mask, special=special)

    def read_images(self, inputs: VLMInputs, execution: Execution, guides: Mapping[str, Tensor]) -> TokenStream:
        """Runs the image encoder: [I, P + 1, D], padded or packed."""
        vision, rows = self.vision, inputs.image_index
        count = vision.patch_weight.numel() * vision.patches
        execution.linear(count, name="image.patches", instances=len(inputs.images), rows=rows)
        image = execution.run(
            self.steps["image"],
            {"image": execution.start(TokenStream.start(vision.embed(inputs.images), ids=inputs.image_ids))},
            guides=guides,
            rows=rows,
        )["image"]
        return image.map(vision.norm)

    def encode(self, inputs: VLMInputs, execution: Execution) -> TokenStream:
        """Runs image encoder and text encoder: the texts that have read their images, an instance a sample.

        Raises:
            ValueError: As :meth:`encode_both`.
        """
        return self.encode_both(inputs, execution)["text"]

    def encode_both(self, inputs: VLMInputs, execution: Execution) -> dict[str, TokenStream]:
        """What is left of all streams behind the fusion stage, an instance a sample.

        Raises:
            ValueError: If the samples have another number of images than the model, or the images another size.
        """
        self.check(inputs)
        if not self.share_images:
            inputs = inputs.unshared_images()
        each = self.images_per_text
        pairs = torch.arange(len(inputs.sample_ids), device=inputs.sample_ids.device)
        first, rows = pairs[::each], None if each == 1 else pairs // each  # an answer's first pair, and a pair's answer
        guides: dict[str, Tensor] = {}
        text: TokenStream | None = None
        if self.text_first and "text" in self.steps:
            text = self._read_text(inputs, first, execution, rows)
            guides["text"] = text.guide()
        elif self.text_first and any(execution.policy.reads(step) for step in self.steps["image"]):
            words = execution.start(self.embed_text(inputs, first, encodes=False))
            guides["text"] = execution.read_ahead(self.ahead, {"text": words}, rows=rows)["text"].guide()
        if rows is not None:
            guides = {name: guide[rows] for name, guide in guides.items()}
        image = self.read_images(inputs, execution, guides)
        if text is None:
            text = self._read_text(inputs, first, execution, rows)
        # from here on an image belongs to its pair
        index = pairs if inputs.image_index is None else inputs.image_index
        names = ["image"] if each == 1 else [f"image{i}" for i in range(each)]
        images = {name: image.expand(index[i::each], inputs.sample_ids[i::each]) for i, name in enumerate(names)}
        return execution.run(self.steps["fusion"], {"text": text, **images}, rows=rows)

    def forward(self, inputs: VLMInputs, execution: Execution) -> Tensor | PairLogits:
        """Runs the model under the execution's policy."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def host_images(self, images: Tensor) -> Tensor:
        """The host's own image encoder: [I, 3, height, width] -> [I, P + 1, D]."""
        raise NotImplementedError(f"{type(self).__name__} does not define host_images()")

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """The host's own forward."""
        raise NotImplementedError(f"{type(self).__name__} does not define host_forward()")

    def _read_text(self, inputs: VLMInputs, first: Tensor, execution: Execution, rows: Tensor | None) -> TokenStream:
        """The text as it enters the fusion stage."""
        text = execution.start(self.embed_text(inputs, first, self.encodes))
        return execution.run(self.steps.get("text", []), {"text": text}, rows=rows)["text"]

    def check(self, inputs: VLMInputs) -> None:
        """Refuses a batch that is not for this model.

        Raises:
            ValueError: If the samples have another number of images than the model, or the images another size.
        """
        if inputs.pairs_per_sample != self.images_per_text:
            raise ValueError(
                f"a sample of the batch has {inputs.pairs_per_sample} image-text pairs, and {self.arch} answers about "
                f"{self.images_per_text}; choose the data set by the model"
            )
        self.check_size(inputs)

    def check_size(self, inputs: VLMInputs) -> None:
        """Refuses images of another size.

        Raises:
            ValueError: If they have one.
        """
        size = self.image_size
        if inputs.images.shape[-2:] != size:
            raise ValueError(
                f"images are {tuple(inputs.images.shape[-2:])} pixels; expected {size[0]} by {size[1]}. Resize them in the "
                f"data pipeline, or set the backbone's {self.size_setting}"
            )

    @property
    def enc_token_id(self) -> int:
        """Id of [ENC], which BLIP's tokenizer adds last."""
        return self.text_config.vocab_size - 1


class FusionClassifier(FusionBackbone):
    """A head on the first token of the multi-modal encoder."""

    head_name = "cls_head"  # in the host

    @property
    def head(self) -> nn.Module:
        """The head, [A, D] -> [A, C]."""
        head: nn.Module = getattr(self.host, self.head_name)
        return head

    @property
    def input_format(self) -> dict[str, int]:
        """See :class:`FusionBackbone`."""
        return {**super().input_format, "num_classes": linears(self.head)[-1].out_features}

    def forward(self, inputs: VLMInputs, execution: Execution) -> Tensor | PairLogits:
        """Runs the model under the execution's policy.

        Args:
            inputs: The batch.
            execution: Policy, kind of execution, and record.

        Returns:
            Logits, [G, C].

        Raises:
            ValueError: If the samples have another number of images than the model, or the images another size.
        """
        text = self.encode(inputs, execution)
        count = sum(linear.weight.numel() for linear in linears(self.head))
        execution.linear(count, name=f"head.{self.head_name}", pairs=self.images_per_text)
        return self.head(text.guide())


def linears(module: nn.Module) -> list[nn.Linear]:
    """The Linears of a module."""
    return [part for part in module.modules() if isinstance(part, nn.Linear)]
