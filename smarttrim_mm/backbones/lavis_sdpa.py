"""A LAVIS model whose attention is torch's ``scaled_dot_product_attention``: a baseline beside its own forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from smarttrim_mm.backbones.lavis_host import import_lavis


class SdpaAttention:
    """Within ``with``, every attention of a LAVIS model is computed by ``scaled_dot_product_attention``.

    Weights, masks, caches and outputs stay the host's; only instances are changed, and changed back. Can be entered again and
    again. CLIP's ViT has torch's own attention, which does so anyway.

    Args:
        host: The LAVIS model.

    Raises:
        ImportError: If LAVIS cannot be imported.
    """

    def __init__(self, host: nn.Module) -> None:
        kinds: dict[type[nn.Module], Callable[..., Any]] = {
            import_lavis("lavis.models.vit").Attention: attend_image,
            import_lavis("lavis.models.eva_vit").Attention: attend_eva,
            import_lavis("lavis.models.med").BertSelfAttention: attend_text,
            import_lavis("lavis.models.blip_models.nlvr_encoder").BertSelfAttention: attend_text,
            import_lavis("lavis.models.blip2_models.Qformer").BertSelfAttention: attend_text,
        }
        self.forwards = [(module, partial(kinds[type(module)], module)) for module in host.modules() if type(module) in kinds]

    def __enter__(self) -> None:
        for module, forward in self.forwards:
            vars(module)["forward"] = forward  # before the class's own

    def __exit__(self, *_: object) -> None:
        for module, _forward in self.forwards:
            vars(module).pop("forward", None)


def attend_image(module: Any, x: Tensor, register_hook: bool = False) -> Tensor:
    """What LAVIS's ``vit.Attention`` computes.

    Args:
        module: The attention.
        x: Tokens, [B, N, D].
        register_hook: Whether the weights are kept for a picture.

    Returns:
        [B, N, D].

    Raises:
        ValueError: If the weights themselves are wanted, or dropout is on.
    """
    _refuse(module, module.attn_drop, register_hook=register_hook)
    return _mixed(module, module.qkv(x))


def attend_eva(module: Any, x: Tensor, rel_pos_bias: Tensor | None = None) -> Tensor:
    """What LAVIS's ``eva_vit.Attention`` computes.

    Args:
        module: The attention.
        x: Tokens, [B, N, D].
        rel_pos_bias: Is added to the scores.

    Returns:
        [B, N, D].

    Raises:
        ValueError: If relative positions enter the scores, or dropout is on.
    """
    relative = module.relative_position_bias_table is not None
    _refuse(module, module.attn_drop, rel_pos_bias=rel_pos_bias is not None, relative_position_bias_table=relative)
    q, v = module.q_bias, module.v_bias
    return _mixed(module, linear(x, module.qkv.weight, None if q is None else torch.cat([q, torch.zeros_like(v), v])))


def _mixed(module: Any, qkv: Tensor) -> Tensor:
    """Queries, keys and values side by side, [B, N, 3 D] -> [B, N, D]."""
    q, k, v = qkv.unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, N, d] each
    y = scaled_dot_product_attention(q, k, v, scale=module.scale)
    return module.proj_drop(module.proj(y.transpose(1, 2).flatten(2)))


def attend_text(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    head_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    past_key_value: tuple[Tensor, Tensor] | None = None,
    output_attentions: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What LAVIS's ``BertSelfAttention`` computes, of ``med``, of ``nlvr_encoder`` and of the Q-Former.

    Args:
        module: The attention.
        hidden_states: Tokens, [B, N, D].
        attention_mask: Is added to the scores, broadcastable to [B, H, N, M].
        head_mask: Factors of the heads.
        encoder_hidden_states: What is read instead of the tokens, [B, M, E].
        encoder_attention_mask: The mask of that.
        past_key_value: Keys and values of earlier tokens, [B, H, P, d] each.
        output_attentions: Whether the weights are wanted.

    Returns:
        [B, N, D], and the keys and values.

    Raises:
        ValueError: If the weights themselves are wanted, heads have factors, dropout is on, or positions enter the scores.
    """
    crosses = encoder_hidden_states is not None
    _refuse(
        module,
        module.dropout,
        head_mask=head_mask is not None,
        output_attentions=output_attentions,
        save_attention=crosses and module.save_attention,
        position_embedding_type=module.position_embedding_type != "absolute",
    )
    read = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    q, k, v = (
        project(x).unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2)
        for project, x in ((module.query, hidden_states), (module.key, read), (module.value, read))
    )
    if past_key_value is not None and not crosses:
        k, v = (torch.cat([past, new], 2) for past, new in zip(past_key_value, (k, v), strict=True))
    y = scaled_dot_product_attention(q, k, v, attn_mask=encoder_attention_mask if crosses else attention_mask)
    return y.transpose(1, 2).flatten(2), (k, v)


def _refuse(module: nn.Module, dropout: nn.Dropout, **wanted: bool) -> None:
    asked = [name for name, value in wanted.items() if value]
    if asked:
        raise ValueError(f"{', '.join(asked)}: scaled_dot_product_attention has no such thing; run LAVIS's own forward instead")
    if module.training and dropout.p > 0:
        raise ValueError(
            f"dropout of the attention is {dropout.p} in training mode, where scaled_dot_product_attention would draw other "
            "random numbers than LAVIS; call eval() first"
        )
