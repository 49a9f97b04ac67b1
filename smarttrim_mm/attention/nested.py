"""``scaled_dot_product_attention`` of jagged nested tensors, which hold sequences of different lengths unpadded."""

import torch
from torch import Tensor
from torch.nested import nested_tensor_from_jagged
from torch.nn.functional import scaled_dot_product_attention

from smarttrim_mm.attention.base import AttentionBackend, HeadPlan, Sequences
from smarttrim_mm.attention.pairs import MULTIPLY_ADDS_PER_MOVE, attend_pairs
from smarttrim_mm.registry import ATTENTION_BACKENDS


@ATTENTION_BACKENDS.register_module()
class NestedAttention(AttentionBackend):
    """Jagged nested tensors, on any device and in any dtype: by name only.

    On a CPU torch multiplies one sequence after the other and converts its layouts in between, far slower than
    :class:`~smarttrim_mm.attention.per_sequence.PerSequenceSDPA`. On a GPU it hands the lengths to FlashAttention or, in
    fp32, to the memory-efficient kernel; that has not been measured for this project.

    Args:
        multiply_adds_per_move: As for :class:`~smarttrim_mm.attention.varlen.VarlenAttention`.
    """

    order = 40

    def __init__(self, *, multiply_adds_per_move: float = MULTIPLY_ADDS_PER_MOVE) -> None:
        self.multiply_adds_per_move = multiply_adds_per_move

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, of_q: Sequences, of_k: Sequences, heads: HeadPlan | None = None
    ) -> tuple[Tensor, int]:
        return attend_pairs(_kernel, q, k, v, of_q, of_k, heads, self.multiply_adds_per_move)


def _kernel(q: Tensor, k: Tensor, v: Tensor, of_q: Sequences, of_k: Sequences, scale: float) -> Tensor:
    nested_q, nested_k, nested_v = (_jagged(x, of) for x, of in ((q, of_q), (k, of_k), (v, of_k)))
    out: Tensor = scaled_dot_product_attention(nested_q, nested_k, nested_v, scale=scale).transpose(1, 2).values()
    return out


def _jagged(x: Tensor, of: Sequences) -> Tensor:
    """[S, H, d] as B sequences [B, H, n, d]; its lengths are known to the host, so that none is read from the device."""
    shortest, longest = min(of.lengths), max(of.lengths)
    jagged = nested_tensor_from_jagged(x.contiguous(), offsets=of.cu_seqlens, min_seqlen=shortest, max_seqlen=longest)
    return jagged.transpose(1, 2)
