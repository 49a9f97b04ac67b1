"""torch's attention for sequences of different lengths: one kernel for a whole batch, which pads nothing."""

from importlib.util import find_spec

import torch
from torch import Tensor

from smarttrim_mm.attention.base import AttentionBackend, HeadPlan, Sequences
from smarttrim_mm.attention.pairs import MULTIPLY_ADDS_PER_MOVE, attend_pairs
from smarttrim_mm.registry import ATTENTION_BACKENDS

_LEAST_CAPABILITY = (8, 0)


@ATTENTION_BACKENDS.register_module()
class VarlenAttention(AttentionBackend):
    """``torch.nn.attention.varlen.varlen_attn``, on NVIDIA GPUs in bf16 and fp16: the first choice there.

    The lengths go to the kernel as they lie on the device; the longest of them is a number of the host.

    Args:
        multiply_adds_per_move: Rates copying heads that are on against attending those that are off, see
            :func:`~smarttrim_mm.attention.pairs.attend_pairs`; 0: copy always.
    """

    order = 0

    def __init__(self, *, multiply_adds_per_move: float = MULTIPLY_ADDS_PER_MOVE) -> None:
        self.multiply_adds_per_move = multiply_adds_per_move

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if find_spec("torch.nn.attention.varlen") is None:
            return f"torch {torch.__version__} has no torch.nn.attention.varlen, which came with 2.10"
        return flash_unavailable(device, dtype)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, of_q: Sequences, of_k: Sequences, heads: HeadPlan | None = None
    ) -> tuple[Tensor, int]:
        return attend_pairs(_kernel, q, k, v, of_q, of_k, heads, self.multiply_adds_per_move)


def flash_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a kernel of FlashAttention cannot run there; None: it can."""
    if device.type != "cuda":
        return "it is for GPUs"
    if dtype not in (torch.bfloat16, torch.float16):
        return "it computes in bf16 and fp16 only"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}, and it needs 8.0 (Ampere)"
    return None


def _kernel(q: Tensor, k: Tensor, v: Tensor, of_q: Sequences, of_k: Sequences, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # not in every torch

    out = varlen_attn(q, k, v, of_q.cu_seqlens, of_k.cu_seqlens, max(of_q.lengths), max(of_k.lengths), scale=scale)
    assert isinstance(out, Tensor)
    return out
