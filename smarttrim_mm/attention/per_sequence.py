"""A call of ``scaled_dot_product_attention`` for each sequence: nothing is padded, nothing is masked."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from smarttrim_mm.attention.base import AttentionBackend, HeadPlan, Sequences
from smarttrim_mm.ops.device import to_device
from smarttrim_mm.registry import ATTENTION_BACKENDS


@ATTENTION_BACKENDS.register_module()
class PerSequenceSDPA(AttentionBackend):
    """One call a sequence, on its own heads: the least compute, and bitwise what the sequence alone would get."""

    order = 30
    runs_alone = True
    bitwise = True

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, of_q: Sequences, of_k: Sequences, heads: HeadPlan | None = None
    ) -> tuple[Tensor, int]:
        if len(of_q.lengths) == 1 and (heads is None or heads.whole):
            one_q, one_k, one_v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # [1, H, n, d]
            out = scaled_dot_product_attention(one_q, one_k, one_v)
            return out.squeeze(0).transpose(0, 1), 2 * q.shape[1] * len(q) * len(k) * q.shape[2]
        of_each = (  # B views [1, H, n, d] each
            x.transpose(0, 1).unsqueeze(0).split(of.lengths, 2) for x, of in ((q, of_q), (k, of_k), (v, of_k))
        )
        everything = tuple(range(q.shape[1]))
        outputs = []
        pairs = 0
        for one_q, one_k, one_v, on in zip(
            *of_each, heads.on if heads is not None else [everything] * len(of_q.lengths), strict=True
        ):
            if len(on) == q.shape[1]:
                out = scaled_dot_product_attention(one_q, one_k, one_v)
            else:
                out = one_q.new_zeros(one_q.shape)
                if on:
                    kept = to_device(np.array(on), q.device)
                    part = scaled_dot_product_attention(*(x.index_select(1, kept) for x in (one_q, one_k, one_v)))
                    out.index_copy_(1, kept, part)
            pairs += len(on) * one_q.shape[2] * one_k.shape[2]
            outputs.append(out.transpose(1, 2))  # [1, n, H, d]
        return torch.cat(outputs, 1).squeeze(0), 2 * pairs * q.shape[2]
