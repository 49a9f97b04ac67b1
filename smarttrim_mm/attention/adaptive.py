"""What is fastest on a CPU: padded calls for little work, one call a sequence for much, and no more threads than that needs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from smarttrim_mm.attention.base import AttentionBackend, HeadPlan, Sequences
from smarttrim_mm.attention.bucketed import BucketedSDPA
from smarttrim_mm.attention.per_sequence import PerSequenceSDPA
from smarttrim_mm.registry import ATTENTION_BACKENDS

# From this many multiply-adds a sequence on, a call per sequence beats padded calls on a CPU: a rule of thumb.
_LOOP_MULTIPLY_ADDS = 2**18
# Up to this many, padding included, a batch is attended by one thread: likewise.
_ONE_THREAD_MULTIPLY_ADDS = 2**25


@ATTENTION_BACKENDS.register_module()
class AdaptiveSDPA(AttentionBackend):
    """:class:`PerSequenceSDPA` where sequences are long, else :class:`BucketedSDPA`."""

    order = 10
    runs_alone = True

    def __init__(self) -> None:
        self.alone, self.bucketed = PerSequenceSDPA(), BucketedSDPA()

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return None if device.type == "cpu" else "it is for CPUs"

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, of_q: Sequences, of_k: Sequences, heads: HeadPlan | None = None
    ) -> tuple[Tensor, int]:
        batch, longest_q, longest_k = len(of_q.lengths), max(of_q.lengths), max(of_k.lengths)
        equal = len(q) == longest_q * batch and len(k) == longest_k * batch and heads is None
        work = 2 * longest_q * longest_k * q.shape[1] * q.shape[2]
        with _threads_for(work * batch):
            if batch == 1 or (work > _LOOP_MULTIPLY_ADDS and not equal):
                return self.alone(q, k, v, of_q, of_k, heads)
            return self.bucketed(q, k, v, of_q, of_k, heads)


@contextmanager
def _threads_for(work: int) -> Iterator[None]:
    """One thread for little work: to wake the others for every small call costs more than they do."""
    threads = torch.get_num_threads()
    if threads == 1 or work > _ONE_THREAD_MULTIPLY_ADDS:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
