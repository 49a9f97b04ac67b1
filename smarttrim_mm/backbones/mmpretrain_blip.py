"""BLIP (Li et al., arXiv 2201.12086) as mmpretrain has it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from smarttrim_mm.backbones.fusion import FusionBackbone, FusionClassifier, ImageEncoder
from smarttrim_mm.backbones.fusion_answers import SMALL_ANSWERS, FusionAnswerer
from smarttrim_mm.backbones.fusion_captions import FusionCaptioner
from smarttrim_mm.backbones.fusion_retrieval import TwiceReadRetriever
from smarttrim_mm.backbones.given_tokens import GivenTokens, PromptTokens
from smarttrim_mm.backbones.mmpretrain import MMPretrainBackbone, model_name
from smarttrim_mm.backbones.mmpretrain_host import build_host, vit_view
from smarttrim_mm.backbones.mmpretrain_sdpa import BertSdpa
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.views import LayerView
from smarttrim_mm.registry import MMPRETRAIN_MODELS

_BEGIN, _END = 101, 102  # of small texts


class VitVision:
    """mmpretrain's ``VisionTransformer`` as an image encoder.

    Args:
        encoder: mmpretrain's.

    Raises:
        ValueError: If it gives something else than all tokens of its last layer, a class token first.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        wanted = {"out_type": "raw", "with_cls_token": True, "out_indices": [encoder.num_layers - 1]}
        for name, value in wanted.items():
            if (found := getattr(encoder, name)) != value:
                raise ValueError(
                    f"the image encoder has {name}={found!r}; expected {value!r}, as in mmpretrain's configs of BLIP"
                )

    @property
    def image_size(self) -> tuple[int, int]:
        height, width = self.encoder.img_size
        return int(height), int(width)

    @property
    def patches(self) -> int:
        return prod(self.encoder.patch_resolution)

    @property
    def patch_weight(self) -> Tensor:
        weight: Tensor = self.encoder.patch_embed.projection.weight
        return weight

    @property
    def width(self) -> int:
        return int(self.encoder.embed_dims)

    def embed(self, images: Tensor) -> Tensor:
        """[I, 3, height, width] -> [I, P + 1, D], the class token first."""
        x = self.encoder.patch_embed(images)[0]
        x = torch.cat([self.encoder.cls_token.expand(len(x), -1, -1).to(x.dtype), x], 1)
        embedded: Tensor = self.encoder.pre_norm(self.encoder.drop_after_pos(x + self.encoder.pos_embed))
        return embedded

    def views(self, stream: str) -> list[LayerView]:
        """Views of the layers."""
        return [vit_view(layer, stream) for layer in self.encoder.layers]

    def norm(self, x: Tensor) -> Tensor:
        """What comes behind the last layer."""
        normed: Tensor = self.encoder.ln1(x) if self.encoder.final_norm else x
        return normed


class MMPretrainBlip(FusionBackbone, MMPretrainBackbone):
    """What mmpretrain's BLIPs share.

    Args:
        model: mmpretrain's config of the model.
        text_first: Whether the text's [CLS] guides the policy inside the image encoder. Each pair then has an image encoding
            of its own, and the text encoder runs once more for it, uni-modally, if the policy wants it.
        share_images: Whether texts of one batch that ask about the same image share its encoding; None: unless
            ``text_first``.
        checkpoint: See :class:`~smarttrim_mm.backbones.mmpretrain.MMPretrainBackbone`.

    Raises:
        ValueError: If the image encoder is none of BLIP's, or ``text_first`` and ``share_images`` are both asked for.
    """

    vision_name = "vision_backbone"  # mmpretrain's name of the image encoder
    size_setting = "model.vision_backbone.img_size"
    bert_config: tuple[str, ...] = ("multimodal_backbone", "med_config")  # where the configuration of its BERT is

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        text_first: bool = False,
        share_images: bool | None = None,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.adopt(build_host(self.host_config(model)), model_name(model), text_first, share_images)

    def host_config(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the model, without what only its predictions from texts need."""
        return {**model, "tokenizer": self.host_tokenizer(model)}

    def host_tokenizer(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Config of what stands for the tokenizer."""
        section: Any = model
        for name in self.bert_config:
            section = section[name]
        return {"type": GivenTokens, "vocab_size": section["vocab_size"], "pad_token_id": section["pad_token_id"]}

    @cached_property
    def vision(self) -> ImageEncoder:
        """See :class:`~smarttrim_mm.backbones.fusion.FusionBackbone`, like the next."""
        return VitVision(getattr(self.host, self.vision_name))

    @property
    def text_encoder(self) -> Any:
        return self.host.multimodal_backbone

    def with_sdpa(self) -> BertSdpa:
        """Within it :meth:`host_forward` attends by ``scaled_dot_product_attention`` everywhere."""
        return BertSdpa(self.host)

    def host_images(self, images: Tensor) -> Tensor:
        """Mmpretrain's own image encoder: [I, 3, height, width] -> [I, P + 1, D]."""
        states: Tensor = getattr(self.host, self.vision_name)(images)[0]
        return states

    def host_texts(self, inputs: VLMInputs) -> Tensor:
        """Mmpretrain's own text encoder on texts that read their images, [G, T, D]."""
        self.check(inputs)
        pairs, each = inputs.unshared(), self.images_per_text
        images = self.host_images(pairs.images)
        seen = torch.ones(images.shape[:2], dtype=torch.long, device=images.device)
        ids = pairs.input_ids[::each].clone()
        if self.encodes:
            ids[:, 0] = self.enc_token_id
        states: Tensor = self.text_encoder(
            ids,
            attention_mask=pairs.text_mask[::each].long(),
            encoder_hidden_states=images if each == 1 else [images[i::each] for i in range(each)],
            encoder_attention_mask=seen if each == 1 else [seen[i::each] for i in range(each)],
            return_dict=True,
        ).last_hidden_state
        return states


@MMPRETRAIN_MODELS.register_module("BlipNLVR")
class BlipNLVR(FusionClassifier, MMPretrainBlip):
    """NLVR2: a text about two images, each read by a cross-attention of its own.

    Unlike LAVIS's, mmpretrain's reads texts that begin with [CLS].
    """

    images_per_text = 2
    head_name = "head"
    bert_config = ("multimodal_backbone", "config")

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        bert = {"type": "BertModel", "config": _small_bert(7, nlvr=True), "add_pooling_layer": False}
        return {"shared images": {"model": {"type": "BlipNLVR", "vision_backbone": _small_vit(1), "multimodal_backbone": bert}}}

    def reads(self, index: int) -> tuple[str, ...]:
        return ("image0", "image1")

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """Mmpretrain's own modules, logits [G, C]."""
        logits: Tensor = self.host.head(self.host_texts(inputs)[:, 0])
        return logits


@MMPRETRAIN_MODELS.register_module("BlipVQA")
class BlipVQA(FusionAnswerer, MMPretrainBlip):
    """Answers about an image: a decoder reads the question, which has read the image.

    Args:
        model: mmpretrain's config. Of its head, ``num_ans_candidates`` is read, unless ``num_candidates`` is given; how
            answers are chosen is said by the other arguments.
        num_candidates: See :class:`~smarttrim_mm.backbones.fusion_answers.FusionAnswerer`, like the others.
        **kwargs: Those of :class:`~smarttrim_mm.backbones.fusion_answers.FusionAnswerer` and of
            :class:`MMPretrainBlip`.
    """

    encodes = True

    def __init__(self, *, model: Mapping[str, Any], num_candidates: int | None = None, **kwargs: Any) -> None:
        number = model["head"].get("num_ans_candidates") or 128 if num_candidates is None else num_candidates
        super().__init__(model=model, num_candidates=number, **kwargs)

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        decoder = {"type": "XBertLMHeadDecoder", "med_config": _small_bert(2, encoder_width=32)}
        model = {
            "type": "BlipVQA",
            "vision_backbone": _small_vit(2, drop_path_rate=0.3),
            "multimodal_backbone": {"type": "XBertEncoder", "med_config": _small_bert(2)},
            "head": {"type": "VQAGenerationHead", "decoder": decoder},
        }
        return {"text first": {"model": model, "answers": SMALL_ANSWERS, "text_first": True}}

    def host_config(self, model: Mapping[str, Any]) -> dict[str, Any]:
        # the list of answers may be on the network
        head = {key: value for key, value in model["head"].items() if key not in ("answer_list_path", "num_ans_candidates")}
        return {**super().host_config(model), "head": {**head, "inference_method": "generate"}}

    @property
    def decoder(self) -> Any:
        return self.host.vqa_head.decoder

    def host_memory(self, inputs: VLMInputs) -> tuple[Tensor, Tensor]:
        return self.host_texts(inputs), inputs.unshared().text_mask


@MMPRETRAIN_MODELS.register_module("BlipCaption")
class BlipCaption(FusionCaptioner, MMPretrainBlip):
    """A text about an image: a decoder reads the image."""

    vision_name = "visual_encoder"
    size_setting = "model.vision_encoder.img_size"
    bert_config = ("decoder_head", "decoder", "med_config")

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        decoder = {"type": "XBertLMHeadDecoder", "med_config": _small_bert(2)}
        model = {
            "type": "BlipCaption",
            "vision_encoder": _small_vit(2, pre_norm=True),
            "decoder_head": {"type": "SeqGenerationHead", "decoder": decoder},
            "prompt": [_BEGIN, 7, 9, _END],
        }
        return {"shared images": {"model": model}}

    def host_tokenizer(self, model: Mapping[str, Any]) -> dict[str, Any]:
        prompt = {"prompt": model.get("prompt", ""), "tokenizer": self.tokenizer}
        return {**super().host_tokenizer(model), "type": PromptTokens, **prompt}

    @property
    def decoder(self) -> Any:
        return self.host.seq_gen_head.decoder

    def host_memory(self, inputs: VLMInputs) -> tuple[Tensor, Tensor]:
        self.check(inputs)
        states = self.host_images(inputs.unshared().images)
        return states, torch.ones(states.shape[:-1], dtype=torch.bool, device=states.device)


@MMPRETRAIN_MODELS.register_module("BlipRetrieval")
class BlipRetrieval(TwiceReadRetriever, MMPretrainBlip):
    """Images and texts of COCO and Flickr30K.

    Its ``topk`` is that of the loops here (``top_k``), and ``fast_match`` is scores by similarity alone, ``top_k=0``.
    """

    bert_config = ("text_backbone", "med_config")
    settings = "model.backbone.model."
    queue_settings = f"{settings}head."

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        model = {
            "type": "BlipRetrieval",
            "vision_backbone": _small_vit(2),
            "text_backbone": {"type": "XBertEncoder", "med_config": _small_bert(2)},
            "vision_neck": {"type": "Linear", "in_features": 24, "out_features": 12},
            "text_neck": {"type": "Linear", "in_features": 32, "out_features": 12},
            "head": {"type": "ITCHead", "embed_dim": 12, "queue_size": 24},
            "multimodal_head": {"type": "ITMHead", "hidden_size": 32, "with_pooler": False},
        }
        return {"shared images": {"model": model}}

    def check_host(self) -> None:
        """Refuses a host that cannot be trained.

        Raises:
            ValueError: If its contrast has no momentum copies, which mmpretrain's own loss cannot do without either.
        """
        super().check_host()
        if not self.queue.use_distill:
            raise ValueError("head has use_distill=False, which mmpretrain's own loss cannot do; expected True. Leave it out")

    def init_weights(self) -> None:
        """As :class:`~smarttrim_mm.backbones.mmpretrain.MMPretrainBackbone`; momentum copies begin as what they copy."""
        super().init_weights()
        if self.checkpoint is None:
            self.host.copy_params()

    @property
    def text_encoder(self) -> Any:
        return self.host.text_backbone

    @property
    def image_proj(self) -> nn.Linear:
        """See :class:`~smarttrim_mm.backbones.fusion_retrieval.FusionRetriever`, like what follows."""
        project: nn.Linear = self.host.vision_neck
        return project

    @property
    def text_proj(self) -> nn.Linear:
        project: nn.Linear = self.host.text_neck
        return project

    @property
    def match_head(self) -> nn.Module:
        head: nn.Module = self.host.multimodal_head
        return head

    @property
    def queue(self) -> Any:
        return self.host.head

    def match(self, first: Tensor) -> Tensor:
        fits: Tensor = self.host.multimodal_head((first,))
        return fits

    def momentum(self, images: Tensor, text: Any) -> tuple[Tensor, Tensor]:
        host = self.host
        image = host.vision_neck_m(host.vision_backbone_m(images)[0][:, 0])
        return image, host.text_neck_m(host.text_backbone_m.forward_text(text).last_hidden_state[:, 0])


def _small_vit(layers: int, **options: Any) -> dict[str, Any]:
    """Config of a small image encoder for tests."""
    arch = {"embed_dims": 24, "num_layers": layers, "num_heads": 4, "feedforward_channels": 96}
    return {"type": "VisionTransformer", "arch": arch, "img_size": 16, "patch_size": 4, "out_type": "raw", **options}


def _small_bert(layers: int, **entries: Any) -> dict[str, Any]:
    """Configuration of a small BERT for tests, dropout on."""
    return {
        "vocab_size": 120,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "max_position_embeddings": 24,
        "pad_token_id": 0,
        "layer_norm_eps": 1e-12,
        "add_type_embeddings": False,
        "add_cross_attention": True,
        "encoder_width": 24,
        **entries,
    }
