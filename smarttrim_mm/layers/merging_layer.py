"""A transformer layer that merges similar tokens between its attention and its MLP (ToMe: Bolya et al., arXiv 2210.09461)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from smarttrim_mm.layers.projections import project, projection_work, split_heads
from smarttrim_mm.layers.views import AttentionView, LayerView, MlpView
from smarttrim_mm.ops.merging import match_tokens, merge_tokens


@dataclass(frozen=True)
class Merged:
    """What a layer gives.

    Attributes:
        x: Tokens, [B, N - r, D].
        sizes: How many original tokens each stands for, fp32 [B, N - r]; None: one each.
        kept: Places of these tokens among those before, long [B, N - r]; None: all.
        executed: Multiply-adds of the tensors that were multiplied.
    """

    x: Tensor
    sizes: Tensor | None
    kept: Tensor | None
    executed: int


def check_merges(name: str, layer: LayerView) -> AttentionView:
    """The one attention of a layer whose tokens can be merged.

    Raises:
        ValueError: If it has others, or tokens with an MLP of their own, or is in training mode.
    """
    if len(layer.attentions) != 1 or layer.first_mlp is not None:
        names = [view.name for view in layer.attentions]
        raise ValueError(
            f"{name} has the attentions {names} and first={layer.first}; expected one self-attention and one MLP, as in a ViT: "
            "tokens cannot be merged elsewhere"
        )
    if layer.owner.training:
        raise ValueError(f"{name} is in training mode; expected evaluation: merging is run without dropout. Call model.eval()")
    return layer.attentions[0]


def run_merging_layer(name: str, layer: LayerView, x: Tensor, sizes: Tensor | None, count: int, protected: int = 1) -> Merged:
    """Runs one layer on tokens without padding.

    Attention is proportional (section 3.3): the logarithm of a token's size is added to the scores of its key.

    Args:
        name: Of the step, for messages.
        layer: A self-attention and an MLP.
        x: Tokens, [B, N, D].
        sizes: How many original tokens each stands for, fp32 [B, N]; None: one each.
        count: Tokens that merge r.
        protected: First tokens that do not merge.

    Returns:
        The tokens behind the layer.

    Raises:
        ValueError: If the layer cannot be run so.
    """
    view = check_merges(name, layer)
    y = view.norm(x) if layer.pre_norm else x
    q, k, v = (split_heads(part, view.heads).transpose(1, 2) for part in project(view, y, y))  # [B, H, N, d]
    bias = None if sizes is None else sizes.log().to(q.dtype)[:, None, None, :]
    out = scaled_dot_product_attention(q, k, v, attn_mask=bias)
    x = _add(x, view.out(out.transpose(1, 2).flatten(2)), view, layer.pre_norm)
    executed = projection_work(view, y, y, view.heads) + 2 * q.numel() * k.shape[2]
    kept = None
    if count:
        merges = match_tokens(k.mean(1), count, protected)
        sizes = torch.ones(x.shape[:2], device=x.device) if sizes is None else sizes
        x, sizes = merge_tokens(x, sizes, merges)
        kept = merges.kept
        free = k.shape[2] - protected
        executed += len(x) * (free // 2) * (free - free // 2) * view.head_width
    mlp = layer.mlp
    y = mlp.fc2(mlp.act(mlp.fc1(mlp.norm(x) if layer.pre_norm else x)))
    executed += x.shape[:2].numel() * mlp.multiply_adds
    return Merged(_add(x, y, mlp, layer.pre_norm), sizes, kept, executed)


def _add(x: Tensor, y: Tensor, view: AttentionView | MlpView, pre_norm: bool) -> Tensor:
    y = y if view.scale is None else view.scale(y)
    return x + y if pre_norm else view.norm(x + y)
