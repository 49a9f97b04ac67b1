"""METER (Dou et al., CVPR 2022, arXiv 2111.02387): CLIP ViT, RoBERTa, and a two-stream fusion encoder.

There is no METER in a library, so the model is composed here: RoBERTa and the fusion layers are the classes of
``transformers``, the vision trunk is :class:`~smarttrim_mm.models.clip_vision.ClipVision`. Parameters carry the names of the
public checkpoints. :meth:`METER.host_forward` is the model itself; :meth:`METER.forward` runs the same parameters under a
policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, RobertaConfig
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.roberta.modeling_roberta import RobertaModel

from smarttrim_mm.backbones.meter_init import check_sources, initialise
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.bert_views import bert_view
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.views import AttentionView, LayerStep, LayerView, MlpView, Projection
from smarttrim_mm.models.clip_vision import Block, ClipVision
from smarttrim_mm.registry import MODELS
from smarttrim_mm.structures import TokenStream

_VISION = {"image_size": 288, "patch_size": 16, "width": 768, "layers": 11, "heads": 12}
_TEXT = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_FUSION = {
    "hidden_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
}


class Pooler(nn.Module):
    """Linear and tanh on the first token, under METER's names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


@MODELS.register_module()
class METER(nn.Module):
    """METER with a classification or ranking head, from the tiny model of the quickstart to the paper's.

    Args:
        num_classes: Answers; None: a ranking head, one score a pair.
        vision: Sizes of the vision trunk, see :class:`~smarttrim_mm.models.clip_vision.ClipVision`; what is left out is
            the paper's: 288 px, patch 16, width 768, 11 blocks of CLIP's ViT-B/16, 12 heads.
        text: Arguments of ``transformers.RobertaConfig``; what is left out is roberta-base's.
        fusion: Arguments of ``transformers.BertConfig`` for the fusion layers; what is left out is the paper's: 6 layers, width
            768, 12 heads, dropout 0.1, LayerNorm eps 1e-12.
        head_name: Name of the head among the parameters: ``'vqa_classifier'``, ``'nlvr2_classifier'``, ``'snli_classifier'``,
            ``'rank_output'``.
        images_per_text: Images that one answer is about: 2 for NLVR2, each with a token type of its own and all read by the
            same text, which is encoded once.
        text_first: Whether the text encoder's [CLS] guides the policy inside the image encoder. Each pair then has an image
            encoding of its own, so that it excludes ``share_images`` and a ranking head.
        share_images: Whether texts of one batch that ask about the same image share its encoding; None: unless
            ``text_first``.
        init_from: Where a training starts: ``{'meter': FILE}``, a public METER file, or ``{'clip': FOLDER, 'roberta':
            FOLDER}``, one or both, as ``transformers`` saves them. Read by :meth:`init_weights`, not when the model is built.

    Raises:
        ValueError: If ``text_first`` meets ``share_images`` or a ranking head, a size is impossible, or ``init_from`` names
            something else.
    """

    host_uses_sdpa = True  # in host_forward

    def __init__(
        self,
        *,
        num_classes: int | None,
        vision: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None,
        fusion: Mapping[str, Any] | None = None,
        head_name: str = "vqa_classifier",
        images_per_text: int = 1,
        text_first: bool = False,
        share_images: bool | None = None,
        init_from: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.init_from = check_sources(init_from or {})
        if text_first and share_images:
            raise ValueError(
                "text_first=True and share_images=True exclude each other: an image encoding that the text has guided belongs "
                "to that text alone. Leave share_images out, or set text_first=False."
            )
        if text_first and num_classes is None:
            raise ValueError(
                "text_first=True with num_classes=None: a ranking head scores every image with every text, from one encoding "
                "of each image, which a text's guidance would make that text's alone. Set text_first=False."
            )
        self.text_first = text_first
        self.share_images = not text_first if share_images is None else share_images
        if images_per_text < 1:
            raise ValueError(f"images_per_text is {images_per_text}; expected at least 1")
        if num_classes is None and images_per_text > 1:
            raise ValueError(f"images_per_text is {images_per_text} with num_classes=None; a ranking head scores single images")
        self.head_name, self.images_per_text = head_name, images_per_text
        text_config = RobertaConfig(**{**_TEXT, **(text or {})}, attn_implementation="sdpa")
        fusion_config = BertConfig(
            **{**_FUSION, **(fusion or {})}, is_decoder=True, add_cross_attention=True, attn_implementation="sdpa"
        )
        width, depth = fusion_config.hidden_size, fusion_config.num_hidden_layers
        trunk = ClipVision(**{**_VISION, **(vision or {})})
        self.vit_model = nn.ModuleDict({"visual": trunk})
        self.cross_modal_text_transform = nn.Linear(text_config.hidden_size, width)
        self.cross_modal_image_transform = nn.Linear(trunk.conv1.out_channels, width)
        self.token_type_embeddings = nn.Embedding(1 + images_per_text, width)
        self.cross_modal_image_layers = nn.ModuleList(BertLayer(fusion_config) for _ in range(depth))
        self.cross_modal_text_layers = nn.ModuleList(BertLayer(fusion_config) for _ in range(depth))
        self.cross_modal_image_pooler = Pooler(width)
        self.cross_modal_text_pooler = Pooler(width)
        self.add_module(head_name, _head(2 * width, images_per_text, num_classes))
        for name, module in self.named_modules():
            if not name.startswith("vit_model"):
                _init_bert(module, fusion_config.initializer_range)
        self.text_transformer = RobertaModel(text_config, add_pooling_layer=False)

    @classmethod
    def small_configs(cls) -> dict[str, dict[str, Any]]:
        """Configs of small instances by name, for tests and documentation; every stream has a width of its own."""
        small: dict[str, Any] = {
            "type": "METER",
            "num_classes": 7,
            "vision": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "heads": 4},
            "text": {
                "vocab_size": 40,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "max_position_embeddings": 24,
            },
            "fusion": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
        }
        return {
            "shared images": small,
            "text first": {**small, "text_first": True},
            "two images": {**small, "head_name": "nlvr2_classifier", "images_per_text": 2},
        }

    def init_weights(self) -> None:
        """Loads what ``init_from`` names; the Runner calls this before a training, ahead of ``load_from`` and ``resume``."""
        initialise(self, self.init_from)

    @property
    def input_format(self) -> dict[str, int]:
        """Sizes and token ids of the inputs and answers, see :func:`smarttrim_mm.utils.random_inputs.random_inputs`."""
        config = self.text_transformer.config
        return {
            "image_size": self.trunk.image_size,
            "vocab_size": config.vocab_size,
            "begin_id": config.bos_token_id,
            "end_id": config.eos_token_id,
            "pad_id": config.pad_token_id,
            "max_text_length": config.max_position_embeddings - config.pad_token_id - 1,  # positions count on from the pad's id
            "num_classes": [part for part in self.head.modules() if isinstance(part, nn.Linear)][-1].out_features,
            "images_per_text": self.images_per_text,
        }

    @property
    def trunk(self) -> ClipVision:
        """The vision trunk."""
        trunk = self.vit_model["visual"]
        assert isinstance(trunk, ClipVision)
        return trunk

    @property
    def head(self) -> nn.Module:
        """The classification head, [G, images 2 D] -> [G, C], or the ranking head, [B, 2 D] -> [B, 1]."""
        return self.get_submodule(self.head_name)

    @property
    def ranks_texts(self) -> bool:
        """Whether the head scores image-text pairs for retrieval."""
        return isinstance(self.head, nn.Linear)

    @cached_property
    def steps(self) -> dict[str, list[LayerStep]]:
        """Views of all layers by stage, in the order of execution."""
        text = [
            LayerStep(f"text.{i}", {"text": bert_view(layer, "text")})
            for i, layer in enumerate(list(self.text_transformer.encoder.layer))
        ]
        guides = {"text": self.text_transformer.config.hidden_size} if self.text_first else {}
        image = [LayerStep(f"image.{i}", {"image": _clip_view(block)}, guides) for i, block in enumerate(self.trunk.blocks)]
        fusion = [
            LayerStep(f"fusion.{i}", {"text": bert_view(t, "text", "image"), "image": bert_view(v, "image", "text")})
            for i, (t, v) in enumerate(zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True))
        ]
        return {"text": text, "image": image, "fusion": fusion}

    def forward(self, inputs: VLMInputs, execution: Execution) -> Tensor:
        """Runs the model under the execution's policy.

        Args:
            inputs: The batch.
            execution: Policy, kind of execution, and record.

        Returns:
            Logits, [G, C]; with a ranking head, the scores of each sample's pairs, [G, pairs_per_sample].

        Raises:
            ValueError: If the samples have another number of images than the model.
        """
        self._check(inputs)
        if not self.share_images:
            inputs = inputs.unshared_images()
        text = self._run_text(inputs, execution)
        guides = {}
        if self.text_first:
            guides["text"] = text.guide() if inputs.text_index is None else text.guide()[inputs.text_index]
        text = self._project("text", text, inputs.text_index, execution)
        return self.fuse(text, self.encode_images(inputs, execution, guides), inputs, execution)

    def encode_texts(self, inputs: VLMInputs, execution: Execution) -> TokenStream:
        """What every image reads of the texts: Q instances. ``inputs`` may be without images."""
        return self._project("text", self._run_text(inputs, execution), inputs.text_index, execution)

    def encode_images(self, inputs: VLMInputs, execution: Execution, guides: Mapping[str, Tensor] | None = None) -> TokenStream:
        """What every text reads of the images: I instances. ``inputs`` may be without texts.

        Args:
            inputs: The batch.
            execution: As in :meth:`forward`.
            guides: With ``text_first``, the encoded texts' first tokens, ``'text'`` [B, D].
        """
        rows = inputs.image_index
        patches = self.trunk.conv1.weight.numel() * self.trunk.grid**2
        execution.linear(patches, name="image.patches", instances=len(inputs.images), rows=rows)
        image = execution.run(
            self.steps["image"],
            {"image": execution.start(TokenStream.start(self.trunk.embed(inputs.images), ids=inputs.image_ids))},
            guides=guides,
            rows=rows,
        )["image"]
        return self._project("image", image.map(self.trunk.ln_post), rows, execution)

    def fuse(self, text: TokenStream, image: TokenStream, inputs: VLMInputs, execution: Execution) -> Tensor:
        """Fusion encoder and head.

        Args:
            text: What :meth:`encode_texts` returned, Q instances.
            image: What :meth:`encode_images` returned, I instances.
            inputs: Says which text and image make a pair (``text_index``, ``image_index``), and the pairs' ``sample_ids``.
            execution: As in :meth:`forward`.

        Returns:
            As :meth:`forward`.
        """
        # from here on a text and an image belong to their pair, shared or not
        text = _of_pairs(text, inputs.text_index, inputs.sample_ids)
        image = _of_pairs(image, inputs.image_index, inputs.sample_ids)
        kinds = image.layout.per_token(self._image_kinds(len(inputs.sample_ids)))
        streams = {
            "text": text.map(lambda x: x + self.token_type_embeddings.weight[0]),
            "image": image.map(lambda x: x + kinds),
        }
        streams = execution.run(self.steps["fusion"], streams)
        for name, module, pairs in (
            ("head.text_pooler", self.cross_modal_text_pooler, 1),
            ("head.image_pooler", self.cross_modal_image_pooler, 1),
            (f"head.{self.head_name}", self.head, self.images_per_text),
        ):
            linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
            execution.linear(sum(part.weight.numel() for part in linears), name=name, pairs=pairs)
        return self._answer(streams["text"].guide(), streams["image"].guide(), inputs)

    def _run_text(self, inputs: VLMInputs, execution: Execution) -> TokenStream:
        text = execution.start(self.embed_text(inputs))
        return execution.run(self.steps["text"], {"text": text}, rows=inputs.text_index)["text"]

    def _project(self, name: str, stream: TokenStream, rows: Tensor | None, execution: Execution) -> TokenStream:
        """To the width of the fusion."""
        transform = self.get_submodule(f"cross_modal_{name}_transform")
        assert isinstance(transform, nn.Linear)
        execution.linear(transform.weight.numel(), name, stream, name=f"{name}.transform", rows=rows)
        return stream.map(transform)

    def embed_text(self, inputs: VLMInputs) -> TokenStream:
        """Token and position embeddings of the texts, padded: [Q, T, D]."""
        x = self.text_transformer.embeddings(input_ids=inputs.input_ids)
        ids = inputs.sample_ids if inputs.text_ids is None else inputs.text_ids
        return TokenStream.start(x, ids=ids, valid=inputs.text_mask, special=inputs.special_mask)

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """METER's own dense forward, by its parts' own code, with scaled_dot_product_attention.

        Args:
            inputs: The batch.

        Returns:
            As :meth:`forward`.
        """
        self._check(inputs)
        mask = torch.zeros_like(inputs.text_mask, dtype=self.token_type_embeddings.weight.dtype)
        mask = mask.masked_fill(~inputs.text_mask, torch.finfo(mask.dtype).min)[:, None, None, :]
        text = self.text_transformer.embeddings(input_ids=inputs.input_ids)
        for layer in self.text_transformer.encoder.layer:
            text = layer(text, mask)[0]
        text = self.cross_modal_text_transform(text) + self.token_type_embeddings.weight[0]
        image = self.cross_modal_image_transform(self.trunk(inputs.images))
        if inputs.text_index is not None:
            text, mask = text[inputs.text_index], mask[inputs.text_index]
        if inputs.image_index is not None:
            image = image[inputs.image_index]
        image = image + self._image_kinds(len(image)).unsqueeze(1)
        # an explicit mask: BertLayer reads None as causal
        whole = mask.new_zeros(len(image), 1, 1, image.shape[1])
        for text_layer, image_layer in zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True):
            # both streams read what the other was before this layer
            text, image = (
                text_layer(text, mask, encoder_hidden_states=image, encoder_attention_mask=whole)[0],
                image_layer(image, whole, encoder_hidden_states=text, encoder_attention_mask=mask)[0],
            )
        return self._answer(text[:, 0], image[:, 0], inputs)

    def _answer(self, text: Tensor, image: Tensor, inputs: VLMInputs) -> Tensor:
        """Poolers and head on the first tokens of the streams, [B, D] each."""
        features = torch.cat([self.cross_modal_text_pooler(text), self.cross_modal_image_pooler(image)], -1)
        if self.ranks_texts:
            return self.head(features).view(-1, inputs.pairs_per_sample)
        return self.head(features.view(len(features) // self.images_per_text, -1))

    def _image_kinds(self, pairs: int) -> Tensor:
        """Token type embedding of each pair's image, [B, D]: the first, the second ... of its text."""
        return self.token_type_embeddings.weight[1:].repeat(pairs // self.images_per_text, 1)

    def _check(self, inputs: VLMInputs) -> None:
        if not self.ranks_texts and inputs.pairs_per_sample != self.images_per_text:
            raise ValueError(
                f"a sample of the batch has {inputs.pairs_per_sample} image-text pairs, and the model answers about "
                f"images_per_text={self.images_per_text}; set images_per_text to the images of an item of the data set"
            )


def _of_pairs(stream: TokenStream, rows: Tensor | None, ids: Tensor) -> TokenStream:
    return stream.with_ids(ids) if rows is None else stream.expand(rows, ids)


def _head(width: int, images: int, num_classes: int | None) -> nn.Module:
    if num_classes is None:
        return nn.Linear(width, 1)
    return nn.Sequential(nn.Linear(images * width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, num_classes))


def _init_bert(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=std)


def _clip_view(block: Block) -> LayerView:
    width = block.attn.out_proj.in_features
    q, k, v = (Projection(block.attn, slice(i * width, (i + 1) * width), "in_proj_weight", "in_proj_bias") for i in range(3))
    attention = AttentionView("image.self", "image", q, k, v, block.attn.out_proj, block.ln_1, block.attn.heads)
    mlp = MlpView(block.mlp.c_fc, block.mlp.gelu, block.mlp.c_proj, block.ln_2)
    return LayerView((attention,), mlp, pre_norm=True, owner=block)
