"""How much memory tensors take, at the highest point of something that runs.

On a GPU that is ``torch.cuda.max_memory_allocated`` over the value before. On a CPU torch's profiler reports each allocation
and release of the CPU's allocator, and the highest of their running sums is taken. The resident size of the process would also
count the interpreter, what the C library has not given back, and the tensors of others. Left out are memory that libraries take
past torch's allocators and, on a GPU, fragmentation.
"""

import os
from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


def peak_growth(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors take while something runs, over what they took before.

    Args:
        run: What runs; it must not release tensors of before.
        device: Where they lie.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would print lines of its own
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate((change for _, change in changes), initial=0))


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory that tensors lie in, each piece counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
