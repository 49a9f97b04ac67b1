"""Views of torch's own transformer layers: hosts that are not ours."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from smarttrim_mm.layers.views import AttentionView, JoinView, LayerStep, LayerView, MlpView, Projection
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import Decision
from smarttrim_mm.testing import excite


def attention_view(module: nn.MultiheadAttention, norm: nn.LayerNorm, name: str, reads: str, dropout: float) -> AttentionView:
    width = module.embed_dim
    q, k, v = (Projection(module, slice(i * width, (i + 1) * width), "in_proj_weight", "in_proj_bias") for i in range(3))
    return AttentionView(name, reads, q, k, v, module.out_proj, norm, module.num_heads, module.dropout, dropout)


@pytest.fixture
def encoder_layer() -> Callable:
    """A layer of torch's encoder and its view as a step."""

    def make(pre_norm: bool, bias: bool = True, dropout: float = 0.0) -> tuple[nn.Module, LayerStep]:
        host = nn.TransformerEncoderLayer(16, 4, 24, dropout, "gelu", norm_first=pre_norm, batch_first=True, bias=bias)
        excite(host)
        attention = attention_view(host.self_attn, host.norm1, "words.self", "words", dropout)
        mlp = MlpView(host.linear1, nn.functional.gelu, host.linear2, host.norm2, dropout)
        return host.eval(), LayerStep("text.0", {"words": LayerView((attention,), mlp, pre_norm, host)})

    return make


@pytest.fixture
def decoder_layer() -> Callable:
    """A layer of torch's decoder that reads a memory, and its view."""

    def make(pre_norm: bool) -> tuple[nn.Module, LayerStep]:
        host = nn.TransformerDecoderLayer(16, 4, 24, 0.0, "gelu", norm_first=pre_norm, batch_first=True)
        excite(host)
        attentions = (
            attention_view(host.self_attn, host.norm1, "words.self", "words", 0.0),
            attention_view(host.multihead_attn, host.norm2, "words.cross", "image", 0.0),
        )
        mlp = MlpView(host.linear1, nn.functional.gelu, host.linear2, host.norm3)
        return host.eval(), LayerStep("text.0", {"words": LayerView(attentions, mlp, pre_norm, host)}, memories={"image": 16})

    return make


@pytest.fixture
def twin_layer() -> Callable:
    """A post-norm step whose words read two images of width 12 by an attention each; 'mean' or 'merge'."""

    def make(kind: str) -> tuple[list[nn.MultiheadAttention], nn.Linear | None, LayerStep]:
        attentions = [nn.MultiheadAttention(16, 4, kdim=12, vdim=12, batch_first=True) for _ in range(2)]
        merge = nn.Linear(32, 16) if kind == "merge" else None
        norms, mlp = [nn.LayerNorm(16), nn.LayerNorm(16)], [nn.Linear(16, 24), nn.Linear(24, 16)]
        owner = nn.ModuleList([*attentions, *norms, *mlp, *([merge] if merge else [])]).eval()
        excite(owner)
        views = tuple(
            AttentionView(
                name=f"words.cross{i}",
                reads=f"image{i}",
                q=Projection(module, None, "q_proj_weight", "q_bias"),
                k=Projection(module, None, "k_proj_weight", "k_bias"),
                v=Projection(module, None, "v_proj_weight", "v_bias"),
                out=module.out_proj,
                norm=norms[0],
                heads=4,
            )
            for i, module in enumerate(attentions)
        )
        for module in attentions:
            module.q_bias, module.k_bias, module.v_bias = module.in_proj_bias.chunk(3)
        join = JoinView(tuple(view.name for view in views), merge)
        view = LayerView(views, MlpView(mlp[0], nn.functional.gelu, mlp[1], norms[1]), False, owner, joins=(join,))
        return attentions, merge, LayerStep("fusion.0", {"words": view}, memories={"image0": 12, "image1": 12})

    return make


@pytest.fixture
def fixed() -> Callable:
    """A policy that decides what it is told, given over the original positions."""

    class Fixed(Policy):
        def __init__(self, keep: dict, heads: dict) -> None:
            super().__init__(steps=[])
            self.keep, self.heads = keep, heads

        def before_layer(self, step, streams, guides):
            keep = {name: streams[name].layout.from_grid(grid) for name, grid in self.keep.items()}
            return Decision(keep=keep, heads=self.heads)

    def make(keep: dict | None = None, heads: dict | None = None) -> Policy:
        return Fixed(keep or {}, heads or {})

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(3, 6, 16)
