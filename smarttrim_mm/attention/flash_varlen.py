"""The attention of the package flash-attn for sequences of different lengths (Dao, arXiv 2307.08691)."""

from importlib.util import find_spec

import torch
from torch import Tensor

from smarttrim_mm.attention.base import AttentionBackend, HeadPlan, Sequences
from smarttrim_mm.attention.pairs import MULTIPLY_ADDS_PER_MOVE, attend_pairs
from smarttrim_mm.attention.varlen import flash_unavailable
from smarttrim_mm.registry import ATTENTION_BACKENDS


@ATTENTION_BACKENDS.register_module()
class FlashVarlenAttention(AttentionBackend):
    """``flash_attn.flash_attn_varlen_func``, on NVIDIA GPUs in bf16 and fp16, where the package is installed.

    Args:
        multiply_adds_per_move: As for :class:`~smarttrim_mm.attention.varlen.VarlenAttention`.
    """

    order = 5

    def __init__(self, *, multiply_adds_per_move: float = MULTIPLY_ADDS_PER_MOVE) -> None:
        self.multiply_adds_per_move = multiply_adds_per_move

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        reason = flash_unavailable(device, dtype)
        if reason is None and find_spec("flash_attn") is None:
            return "the package flash-attn is not installed"
        return reason

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, of_q: Sequences, of_k: Sequences, heads: HeadPlan | None = None
    ) -> tuple[Tensor, int]:
        return attend_pairs(_kernel, q, k, v, of_q, of_k, heads, self.multiply_adds_per_move)


def _kernel(q: Tensor, k: Tensor, v: Tensor, of_q: Sequences, of_k: Sequences, scale: float) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # an optional dependency

    out: Tensor = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=of_q.cu_seqlens,
        cu_seqlens_k=of_k.cu_seqlens,
        max_seqlen_q=max(of_q.lengths),
        max_seqlen_k=max(of_k.lengths),
        softmax_scale=scale,
    )
    return out
