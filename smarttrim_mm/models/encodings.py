"""What backbones make of texts and images for retrieval: token streams and tensors, alone or in dataclasses of their own."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from smarttrim_mm.structures import PackedLayout

Encoding = TypeVar("Encoding")


def moved(encoding: Encoding, device: torch.device | str) -> Encoding:
    """The same on another device.

    Args:
        encoding: A dataclass; what it holds besides tensors and dataclasses stays as it is.
        device: The device.
    """
    return _moved(encoding, device)


def joined(encodings: Sequence[Encoding]) -> Encoding:
    """The instances of several encodings, one after the other.

    Args:
        encodings: Of one kind, on one device; their streams packed.

    Raises:
        TypeError: If they hold something other than packed streams, tensors [instances, ...] and dataclasses of these.
    """
    return _joined(encodings)


def num_bytes(encoding: object) -> int:
    """Bytes of the tensors of an encoding."""
    return encoding.nbytes if isinstance(encoding, Tensor) else sum(map(num_bytes, _parts(encoding).values()))


def _moved(part: Any, device: torch.device | str) -> Any:
    if isinstance(part, Tensor):
        return part.to(device)
    parts = {name: _moved(value, device) for name, value in _parts(part).items()}
    return replace(part, **parts) if parts else part


def _joined(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, PackedLayout):
        return PackedLayout.concatenate(parts)
    names = _parts(first)
    if not names:
        raise TypeError(
            f"an encoding holds a {type(first).__name__}: expected packed token streams, tensors [instances, ...], or "
            "dataclasses of these; see encode_texts in docs/add_a_backbone.md"
        )
    return replace(first, **{name: _joined([getattr(part, name) for part in parts]) for name in names})


def _parts(encoding: Any) -> dict[str, Any]:
    return {field.name: getattr(encoding, field.name) for field in fields(encoding)} if is_dataclass(encoding) else {}
