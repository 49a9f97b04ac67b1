"""What adapters need of mmpretrain: building its models, and views of its ViT's layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from smarttrim_mm.layers.views import AttentionView, LayerView, MlpView, Projection


def build_host(config: Mapping[str, Any]) -> Any:
    """Builds a model of mmpretrain from its config, as mmpretrain's config files have it; the weights are random.

    The names in it are those of mmpretrain's scope, whatever the default scope is.

    Args:
        config: With ``type``, the name in mmpretrain's registry of models.

    Returns:
        The model, on torch's default device.

    Raises:
        ImportError: If mmpretrain cannot be imported.
        KeyError: If mmpretrain has no model of that name.
        ValueError: If ``config`` has no ``type``.
    """
    from mmpretrain.registry import MODELS

    if "type" not in config:
        raise ValueError(
            f"the config of mmpretrain's model has {', '.join(config) or 'nothing'}; expected a type, as its files"
        )
    device = torch.get_default_device()
    with torch.device("cpu"):  # hosts may read numbers off a tensor, which the meta device does not have
        host = MODELS.build({**copy.deepcopy(dict(config)), "_scope_": "mmpretrain"})  # a copy, as mmpretrain writes into it
    return host if device.type == "cpu" else host.to(device)


def vit_view(layer: Any, stream: str) -> LayerView:
    """The view of a ``TransformerEncoderLayer`` of mmpretrain's ``VisionTransformer``.

    Args:
        layer: The layer.
        stream: Name of its stream.

    Raises:
        ValueError: If its MLP is not of two Linears, one after the other.
    """
    inner, ffn, width = layer.attn, layer.ffn, layer.attn.proj.in_features
    count = getattr(ffn, "num_fcs", None)
    if count != 2:
        raise ValueError(
            f"the MLP of a layer of {stream!r} is {type(ffn).__name__} of num_fcs={count}; expected FFN of num_fcs=2: gated "
            "and deeper ones have no view. Leave ffn_type and num_fcs out of layer_cfgs"
        )
    (fc1, act, inside), fc2, outside = ffn.layers
    q, k, v = (Projection(inner.qkv, slice(i * width, (i + 1) * width)) for i in range(3))
    attention = AttentionView(
        name=f"{stream}.self",
        reads=stream,
        q=q,
        k=k,
        v=v,
        out=inner.proj,
        norm=layer.ln1,
        heads=inner.num_heads,
        attention_dropout=inner.attn_drop,
        dropout=inner.proj_drop.p,
        drop_path=_drop_path(inner.out_drop),
        scale=_scale(inner.gamma1),
    )
    feed_forward = MlpView(
        fc1=fc1,
        act=nn.Sequential(act, inside),
        fc2=fc2,
        norm=layer.ln2,
        dropout=outside.p,
        drop_path=_drop_path(ffn.dropout_layer),
        scale=_scale(ffn.gamma2),
    )
    return LayerView((attention,), feed_forward, pre_norm=True, owner=layer)


def _drop_path(module: nn.Module) -> float:
    return float(getattr(module, "drop_prob", 0.0))


def _scale(module: nn.Module) -> nn.Module | None:
    return None if isinstance(module, nn.Identity) else module
