"""torch's flex attention, with a mask that keeps the sequences of a batch apart (He et al., arXiv 2412.05496)."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from smarttrim_mm.attention.base import AttentionBackend, HeadPlan, Sequences
from smarttrim_mm.attention.pairs import off_zeroed
from smarttrim_mm.ops.device import to_device
from smarttrim_mm.registry import ATTENTION_BACKENDS

_BLOCK = 128


@ATTENTION_BACKENDS.register_module()
class FlexAttention(AttentionBackend):
    """All sequences as one, in which a token reads those of its own instance: by name only.

    Compiled, blocks of 128 x 128 scores without a pair of one instance are skipped; the first call compiles for seconds to
    minutes. Uncompiled, all scores of the batch are computed. Heads that are off are attended and zeroed. On a GPU this has
    not been measured for this project; on a CPU it is slow, and has no gradients.

    Args:
        compiled: Whether the kernel is compiled; None: on GPUs. torch 2.13 compiles it for a CPU only where there are as many
            keys as queries.
    """

    order = 50

    def __init__(self, *, compiled: bool | None = None) -> None:
        self.compiled = compiled

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, of_q: Sequences, of_k: Sequences, heads: HeadPlan | None = None
    ) -> tuple[Tensor, int]:
        compiled = q.device.type == "cuda" if self.compiled is None else self.compiled
        if compiled and q.device.type == "cpu" and len(q) != len(k):
            raise ValueError(
                f"FlexAttention(compiled=True) got {len(q)} queries and {len(k)} keys on a CPU, where torch compiles it only "
                "for as many of both. Leave compiled=None, or choose another backend"
            )
        mask, in_blocks = _block_mask(of_q.lengths, of_k.lengths, q.device)
        attend: Any = _compiled() if compiled else flex_attention
        one_q, one_k, one_v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # [1, H, S, d]
        out = attend(one_q, one_k, one_v, block_mask=mask).squeeze(0).transpose(0, 1)
        if heads is not None and not heads.whole:
            out = off_zeroed(out, of_q, heads)
        return out, 2 * q.shape[1] * q.shape[2] * (in_blocks if compiled else len(q) * len(k))


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


@lru_cache(maxsize=32)  # layers that drop nothing share their lengths; more would fill the memory with those of past batches
@torch.inference_mode(False)  # what is kept must serve passes with gradients too
def _block_mask(lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], device: torch.device) -> tuple[BlockMask, int]:
    """The mask of B sequences, and how many scores lie in the blocks that it needs."""
    touched, full = blocks_of(np.array(lengths_q), np.array(lengths_k))
    instances = range(len(lengths_q))
    of_q, of_k = (to_device(np.repeat(instances, lengths), device) for lengths in (lengths_q, lengths_k))

    def same_instance(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return of_q[query] == of_k[key]

    mask = BlockMask.from_kv_blocks(
        *_in_order(touched & ~full, device),
        *_in_order(full, device),
        BLOCK_SIZE=_BLOCK,
        mask_mod=same_instance,
        seq_lengths=(sum(lengths_q), sum(lengths_k)),
    )
    sizes = (np.minimum(_BLOCK, total - np.arange(0, total, _BLOCK)) for total in (sum(lengths_q), sum(lengths_k)))
    return mask, int((touched * np.multiply.outer(*sizes)).sum())


def blocks_of(lengths_q: NDArray, lengths_k: NDArray) -> tuple[NDArray, NDArray]:
    """Which blocks of scores hold a pair of one instance, and which hold nothing else.

    Args:
        lengths_q: Queries of each instance, [B].
        lengths_k: Keys of each instance, [B].

    Returns:
        Two of bool [blocks of queries, blocks of keys]; a block that is cut off at the end never counts as full.
    """
    ends_q, ends_k = np.cumsum(lengths_q), np.cumsum(lengths_k)
    begin_q, begin_k = (np.arange(0, ends[-1], _BLOCK) for ends in (ends_q, ends_k))
    last_q = np.minimum(begin_q + _BLOCK, ends_q[-1]) - 1
    first, last = (np.searchsorted(ends_q, at, side="right")[:, None] for at in (begin_q, last_q))  # instances of a row
    keys_begin, keys_end = ends_k[first] - lengths_k[first], ends_k[last]
    touched = (begin_k < keys_end) & (begin_k + _BLOCK > keys_begin)
    inside = (begin_k >= keys_begin) & (begin_k + _BLOCK <= keys_end)
    whole = (first == last) & (begin_q[:, None] + _BLOCK <= ends_q[-1])
    return touched, inside & whole


def _in_order(blocks: NDArray, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, int32 [1, 1, rows], and which: first those, then the others, [1, 1, rows, columns]."""
    count, order = blocks.sum(1, dtype=np.int32), np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    return to_device(count, device)[None, None], to_device(order, device)[None, None]
