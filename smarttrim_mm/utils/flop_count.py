"""An independent count of compute: what torch dispatches."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

Result = TypeVar("Result")


def count_multiply_adds(function: Callable[[], Result]) -> tuple[Result, int]:
    """Runs a function and counts its multiply-adds by what torch dispatches, knowing nothing of records.

    Returns:
        What the function returned, and half of the floating-point operations of ``FlopCounterMode``, to which the attention
        kernel of the CPU is added.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={attention: _attention_flops})
    with counter:
        result = function()
    return result, counter.get_total_flops() // 2


def _attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (width + v[3])
