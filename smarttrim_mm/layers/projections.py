"""Projections of a layer's attention, of all heads."""

from torch import Tensor
from torch.nn.functional import linear

from smarttrim_mm.layers.views import AttentionView


def project(view: AttentionView, x: Tensor, memory: Tensor) -> tuple[Tensor, ...]:
    """Queries of x, keys and values of the memory, [..., D] each; one product where a host's weight holds all three."""
    fused = view.q.weight is view.k.weight is view.v.weight
    if fused and x is memory and view.q.rows is not None:
        return linear(x, view.q.weight, view.q.bias).chunk(3, -1)
    return tuple(linear(source, *p.parameters()) for p, source in ((view.q, x), (view.k, memory), (view.v, memory)))


def projection_work(view: AttentionView, x: Tensor, memory: Tensor, heads: int) -> int:
    """Multiply-adds of the four projections for so many heads."""
    rows, keys = x.shape[:-1].numel(), memory.shape[:-1].numel()
    return heads * view.head_width * (rows * (view.q.inputs + view.out.out_features) + 2 * keys * view.k.inputs)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., H d] as [..., H, d]."""
    return x.unflatten(-1, (heads, -1))
