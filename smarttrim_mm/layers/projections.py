"""Projections of a layer's attention, of all heads, and merged tokens' weight in it."""

from torch import Tensor, cat
from torch.nn.functional import linear, pad

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


def weigh_by_size(q: Tensor, k: Tensor, v: Tensor, log_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values with one channel more, by which a key's score grows by the logarithm of its size.

    That is the proportional attention of ToMe (arXiv 2210.09461, section 3), for any backend: none of them has to know of it.
    The result's last channel is to be dropped.

    Args:
        q: Queries, [..., d].
        k: Keys, [..., d].
        v: Values, [..., d].
        log_sizes: Of each key, broadcast to ``k`` without its last axis.

    Returns:
        [..., d + 1] each, whose attention scaled by (d + 1)^-1/2 is that of the scale d^-1/2.
    """
    width = q.shape[-1]
    root = (width + 1) ** 0.5  # what the scores will be divided by
    q = pad(q * (root * width**-0.5), (0, 1), value=root)
    sizes = log_sizes.to(k.dtype).expand(k.shape[:-1]).unsqueeze(-1)
    return q, cat([k, sizes], -1), pad(v, (0, 1))
