"""Attention over padded batches: gated (training) and masked (oracle). Packed attention is in ``smarttrim_mm/attention``."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, scaled_dot_product_attention

# A dropped key may score above every kept one; its exponential only reaches the gradient of its gate, which is bounded here, as
# one such key could outweigh all others in a clipped gradient (norms up to 1e6 were seen without).
_MAX_EXPONENT = 4.0
# A CPU goes over the scores of so many query-key pairs at a time: they fit into its cache, and their memory is used again.
_SCORES_PER_BLOCK = 2**21


def gated_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Softmax attention whose keys carry gates: exp(s) m / sum exp(s) m, in fp32.

    A mask of -inf would give the same output and no gradient to the gates (the masked softmax of DynamicViT,
    arXiv 2106.02034, eq. 10-11, here without its kept diagonal).

    Args:
        q: Queries, [B, H, N, d].
        k: Keys, [B, H, M, d].
        v: Values, [B, H, M, d].
        gate: 1 for kept keys, 0 for dropped ones and padding, [B, M]; at least one kept key an instance.
        dropout_p: Dropout on the attention weights.

    Returns:
        [B, H, N, d].
    """
    if dropout_p == 0:
        out: Tensor = _GatedAttention.apply(q, k, v, gate)
        return out
    weights = _gated_weights(q, k, gate[:, None, None, :]).to(v.dtype)
    gate = gate[:, None, :, None].to(v.dtype).expand(-1, v.shape[1], -1, -1)  # [B, H, M, 1]
    return dropout(weights, dropout_p) @ (v * gate) / (weights @ gate)


def _gated_weights(q: Tensor, k: Tensor, gate: Tensor) -> Tensor:
    """exp(s) of every key over that of the highest kept one, fp32 [..., N, M]; bounded where a dropped key scores above it."""
    scores = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).float()
    with torch.no_grad():
        top = scores.masked_fill(gate == 0, -torch.inf).amax(-1, keepdim=True)
    if scores.requires_grad:
        return torch.exp((scores - top).clamp(max=_MAX_EXPONENT))
    return scores.sub_(top).clamp_(max=_MAX_EXPONENT).exp_()


class _GatedAttention(torch.autograd.Function):
    """Attention over the kept keys, whose gradient reaches the gates of all.

    Where gates are 0 or 1 the output is that of a mask, and so are the gradients of q, k and v: only the gates' gradient needs
    the weights of dropped keys. They are computed in the backward pass, so that no [N, M] tensor waits for it.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        out = scaled_dot_product_attention(q, k, v, attn_mask=(gate > 0)[:, None, None, :])
        ctx.save_for_backward(q, k, v, gate, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, gate, out = ctx.saved_tensors
        batch, heads, queries = q.shape[:3]
        each = (x.flatten(0, 1) for x in (q, k, v, out, grad, gate[:, None].expand(-1, heads, -1)))  # [B H, ...]
        block = batch * heads
        if q.device.type == "cpu":
            block = min(block, max(1, _SCORES_PER_BLOCK // (queries * k.shape[2])))
        blocks = [_gated_gradients(*parts) for parts in zip(*(x.split(block) for x in each), strict=True)]
        grads = (torch.cat(parts).unflatten(0, (batch, heads)) for parts in zip(*blocks, strict=True))
        grad_q, grad_k, grad_v, grad_gate = grads
        return grad_q, grad_k, grad_v, grad_gate.sum(1)


def _gated_gradients(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :class:`_GatedAttention`, per head.

    Args:
        q: Queries, [b, N, d].
        k: Keys, [b, M, d].
        v: Values, [b, M, d].
        out: What the attention gave, [b, N, d].
        grad: Its gradient, [b, N, d].
        gate: Keep gate of the keys, [b, M].

    Returns:
        Those of q, k, v and gate.
    """
    weights = _gated_weights(q, k, gate[:, None, :]).to(v.dtype)  # their sums divide the gradient of the output instead
    kept = gate.unsqueeze(-1).to(v.dtype)  # [b, M, 1]
    grad = grad / (weights @ kept)
    grad_v = weights.transpose(-2, -1) @ grad * kept
    # g . (v - out) as one product: no pass over [N, M] for the difference
    left = torch.cat([grad, -(grad * out).sum(-1, keepdim=True)], -1)
    right = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    slope = weights.mul_(left @ right.transpose(-2, -1))  # of the scores, were every key kept
    kept = kept * q.shape[-1] ** -0.5
    return slope @ (k * kept), slope.transpose(-2, -1) @ q * kept, grad_v, slope.sum(-2, dtype=gate.dtype)


def key_bias(gate: Tensor) -> Tensor:
    """What a mask adds to the scores: 0 at kept keys, minus infinity at others.

    It serves all attentions that read the keys; a bool mask would be turned into this in each of them.

    Args:
        gate: 1 for kept keys, 0 for others, [B, M].

    Returns:
        [B, 1, 1, M], without a gradient.
    """
    return gate.detach().log()[:, None, None, :]


def padded_attention(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, dropout_p: float, bias: Tensor | None) -> Tensor:
    """Attention over a padded batch, by the cheapest exact path.

    Args:
        q: Queries, [B, H, N, d].
        k: Keys, [B, H, M, d].
        v: Values, [B, H, M, d].
        gate: Keep gate of the keys, [B, M].
        dropout_p: Dropout on the attention weights.
        bias: What :func:`key_bias` makes of the gate; None: every key is kept, and no mask needed. Not used where the gate has
            a gradient.

    Returns:
        [B, H, N, d].
    """
    if gate.requires_grad:
        return gated_attention(q, k, v, gate, dropout_p)
    return scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype), dropout_p=dropout_p)
