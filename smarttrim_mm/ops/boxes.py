"""Boxes by their corners and by their centres."""

import torch
from torch import Tensor


def corners(boxes: Tensor) -> Tensor:
    """Centre x, centre y, width, height -> left, top, right, bottom, [..., 4] both."""
    centre, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return torch.cat([centre - half, centre + half], -1)


def centres(boxes: Tensor) -> Tensor:
    """Left, top, right, bottom -> centre x, centre y, width, height, [..., 4] both."""
    first, last = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(first + last) / 2, last - first], -1)
