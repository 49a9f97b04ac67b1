"""Numbers that a device needs from the host, without waiting for it."""

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(numbers: NDArray, device: torch.device) -> Tensor:
    """Copies what the host laid out.

    A copy from ordinary memory would wait until a GPU has done all that was asked of it before; one from pinned memory is
    only one more thing asked of it.

    Args:
        numbers: On the host, any shape and dtype.
        device: Where they go.

    Returns:
        The same on the device.
    """
    tensor = torch.from_numpy(numbers)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
