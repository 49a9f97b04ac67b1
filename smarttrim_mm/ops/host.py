"""Numbers that the host needs from the device, in one transfer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_host(tensors: Sequence[Tensor]) -> list[Any]:
    """Reads tensors from their device: one synchronisation for all of them, none if there are none.

    Everything else in a packed forward is laid out from what this gave, so that its calls are the forward's synchronisations.

    Args:
        tensors: Of any shapes, on one device; bool or int32.

    Returns:
        Their values as nested lists, bools as 0 and 1.
    """
    if not tensors:
        return []
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.int().tolist() for tensor in tensors]
    flat = torch.cat([tensor.flatten().int() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).tolist() for part, tensor in zip(parts, tensors, strict=True)]
