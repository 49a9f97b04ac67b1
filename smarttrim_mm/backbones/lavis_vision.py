"""The image encoders of LAVIS: BLIP's and ALBEF's ViT, and those of BLIP-2, EVA's ViT-g and CLIP's ViT-L."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from smarttrim_mm.backbones.fusion import ImageEncoder
from smarttrim_mm.backbones.lavis_host import import_lavis, vit_view
from smarttrim_mm.layers.views import AttentionView, LayerView, MlpView, Projection

EVA, CLIP = "eva_clip_g", "clip_L"  # LAVIS's names, vit_model
_MODULES = {EVA: "lavis.models.eva_vit", CLIP: "lavis.models.clip_vit"}
_SIZES: dict[str, dict[str, Any]] = {  # LAVIS writes them in code, between downloads
    EVA: {
        "patch_size": 14,
        "use_mean_pooling": False,
        "embed_dim": 1408,
        "depth": 39,
        "num_heads": 16,
        "mlp_ratio": 4.3637,
        "qkv_bias": True,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    },
    CLIP: {"patch_size": 14, "width": 1024, "layers": 22, "heads": 16},
}


def new_vision(options: Mapping[str, Any], sizes: Mapping[str, Any]) -> nn.Module:
    """An image encoder by LAVIS's own class; nothing is downloaded.

    Args:
        options: Of LAVIS's model: ``vit_model``, ``img_size``, ``drop_path_rate``, ``use_grad_checkpoint``, ``vit_precision``.
        sizes: Other arguments of the encoder's class than LAVIS's.

    Raises:
        ValueError: If there is no such encoder.
    """
    name = options["vit_model"]
    if name not in _MODULES:
        raise ValueError(f"vit_model is {name!r}; expected one of {list(_MODULES)}")
    own = (
        {"img_size": options["img_size"], "drop_path_rate": options["drop_path_rate"]}
        if name == EVA
        else {"input_resolution": options["img_size"]}
    )
    own |= {"use_checkpoint" if name == EVA else "use_grad_checkpointing": options["use_grad_checkpoint"]}
    module = import_lavis(_MODULES[name])
    encoder = module.VisionTransformer(**{**own, **_SIZES[name], **sizes})
    if options["vit_precision"] == "fp16":
        module.convert_weights_to_fp16(encoder)
    return encoder


def vision_of(encoder: Any) -> ImageEncoder:
    """The adapter of an image encoder.

    Raises:
        ValueError: If its layers have a part that cannot be trimmed.
    """
    if hasattr(encoder, "conv1"):
        return ClipVision(encoder)
    return EvaVision(encoder) if hasattr(encoder, "use_rel_pos_bias") else VitVision(encoder)


@dataclass(frozen=True)
class QVBiased(Projection):
    """Some rows of EVA's fused projection, whose bias LAVIS puts together: queries and values have one, keys have none."""

    module: Any  # LAVIS has no types

    @property
    def weight(self) -> Tensor:
        return self.module.qkv.weight

    @property
    def bias(self) -> Tensor | None:
        q, v = self.module.q_bias, self.module.v_bias
        return None if q is None else torch.cat([q, torch.zeros_like(v), v])

    def owners(self) -> list[tuple[nn.Module, str, slice | None]]:
        found: list[tuple[nn.Module, str, slice | None]] = [(self.module.qkv, "weight", self.rows)]
        if self.module.q_bias is not None and self.rows is not None:
            which = self.rows.start // (self.rows.stop - self.rows.start)
            found += [(self.module, name, None) for name in (("q_bias",), (), ("v_bias",))[which]]
        return found


class VitVision:
    """BLIP's and ALBEF's ViT.

    Args:
        encoder: LAVIS's.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    @property
    def image_size(self) -> tuple[int, int]:
        size: tuple[int, int] = self.encoder.patch_embed.img_size
        return size

    @property
    def patches(self) -> int:
        return int(self.encoder.patch_embed.num_patches)

    @property
    def patch_weight(self) -> Tensor:
        weight: Tensor = self.encoder.patch_embed.proj.weight
        return weight

    @property
    def width(self) -> int:
        return int(self.encoder.embed_dim)

    def embed(self, images: Tensor) -> Tensor:
        """[I, 3, height, width] -> [I, P + 1, D], the class token first."""
        x = self.encoder.patch_embed(images)
        x = torch.cat([self.encoder.cls_token.to(x.dtype).expand(len(x), -1, -1), x], 1)
        embedded: Tensor = self.encoder.pos_drop(x + self.encoder.pos_embed)
        return embedded

    def views(self, stream: str) -> list[LayerView]:
        """Views of the layers."""
        return [vit_view(block, stream) for block in self.encoder.blocks]

    def norm(self, x: Tensor) -> Tensor:
        """What comes behind the last layer."""
        normed: Tensor = self.encoder.norm(x)
        return normed


class EvaVision(VitVision):
    """EVA's ViT: pre-norm, as BLIP's but for the biases and one dropout.

    Args:
        encoder: LAVIS's.

    Raises:
        ValueError: If it has other positions, or LayerScale.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__(encoder)
        others = {
            "use_abs_pos_emb=False": encoder.pos_embed is None,
            "use_shared_rel_pos_bias": encoder.rel_pos_bias is not None,
            "use_rel_pos_bias": encoder.use_rel_pos_bias,
            "init_values": any(block.gamma_1 is not None for block in encoder.blocks),
        }
        if found := [name for name, there in others.items() if there]:
            raise ValueError(
                f"vision has {', '.join(found)}; expected absolute positions, no relative ones and no LayerScale, as LAVIS's "
                "ViT-g. Leave it out"
            )

    def views(self, stream: str) -> list[LayerView]:
        """Views of the layers."""
        return [_eva_view(block, stream) for block in self.encoder.blocks]

    def norm(self, x: Tensor) -> Tensor:
        """Nothing: BLIP-2 has a norm of its own."""
        return x


class ClipVision:
    """CLIP's ViT: pre-norm, around torch's own attention.

    Args:
        encoder: LAVIS's.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    @property
    def image_size(self) -> tuple[int, int]:
        return (self.encoder.input_resolution,) * 2

    @property
    def patches(self) -> int:
        return self.encoder.num_patches

    @property
    def patch_weight(self) -> Tensor:
        return self.encoder.conv1.weight

    @property
    def width(self) -> int:
        return self.encoder.num_features

    def embed(self, images: Tensor) -> Tensor:
        """[I, 3, height, width] -> [I, P + 1, D], the class token first."""
        x = self.encoder.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.encoder.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], 1)
        return self.encoder.ln_pre(x + self.encoder.positional_embedding.to(x.dtype))

    def views(self, stream: str) -> list[LayerView]:
        """Views of the layers."""
        return [_clip_view(block, stream) for block in self.encoder.transformer.resblocks]

    def norm(self, x: Tensor) -> Tensor:
        """Nothing: BLIP-2 has a norm of its own."""
        return x


def _eva_view(block: Any, stream: str) -> LayerView:
    view = vit_view(block, stream)
    (attention,) = view.attentions
    q, k, v = (QVBiased(block.attn, each.rows) for each in (attention.q, attention.k, attention.v))
    mlp = replace(view.mlp, act=block.mlp.act)  # no dropout between its Linears
    return replace(view, attentions=(replace(attention, q=q, k=k, v=v),), mlp=mlp)


def _clip_view(block: Any, stream: str) -> LayerView:
    inner, mlp, width = block.attn, block.mlp, block.attn.out_proj.in_features
    q, k, v = (Projection(inner, slice(i * width, (i + 1) * width), "in_proj_weight", "in_proj_bias") for i in range(3))
    attention = AttentionView(f"{stream}.self", stream, q, k, v, inner.out_proj, block.ln_1, inner.num_heads)
    feed_forward = MlpView(mlp.c_fc, mlp.gelu, mlp.c_proj, block.ln_2)
    return LayerView((attention,), feed_forward, pre_norm=True, owner=block)
