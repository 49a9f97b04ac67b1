"""Projections of a layer's attention, of all heads."""

from torch import Tensor
from torch.nn.functional import linear

from smarttrim_mm.layers.views import AttentionView


def project(view: AttentionView, x: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
    """Queries of x, keys and values of the memory, [..., D] each; one product where a host's weight holds all three."""
    if view.q.rows is not None and x is memory:
        weight = view.q.weight
        if weight is view.k.weight and weight is view.v.weight:
            return linear(x, weight, view.q.bias).chunk(3, -1)
    return tuple(linear(source, *p.parameters()) for p, source in ((view.q, x), (view.k, memory), (view.v, memory)))


def projection_work(view: AttentionView, x: Tensor, memory: Tensor, heads: int) -> int:
    """Multiply-adds of the four projections for so many heads."""
    outputs = x.shape[:-1].numel() * view.out.out_features
    return heads * view.head_width * (x.numel() + outputs + 2 * memory.numel())


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., H d] as [..., H, d]."""
    return x.view(*x.shape[:-1], heads, -1)  # unflatten() without its checks
