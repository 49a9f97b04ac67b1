"""What backbones make of texts and images for retrieval: token streams and tensors, alone, in mappings or in dataclasses."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from smarttrim_mm.structures import PackedLayout

Encoding = TypeVar("Encoding")


def moved(encoding: Encoding, device: torch.device | str) -> Encoding:
    """The same on another device.

    Args:
        encoding: A dataclass; what it holds besides tensors, mappings and dataclasses stays as it is.
        device: The device.
    """
    return _moved(encoding, device)


def joined(encodings: Sequence[Encoding]) -> Encoding:
    """The instances of several encodings, one after the other.

    Args:
        encodings: Of one kind, on one device; their streams packed.

    Raises:
        TypeError: If they hold something other than packed streams, tensors [instances, ...], and mappings and dataclasses of
            these.
    """
    return _joined(encodings)


def num_bytes(encoding: object) -> int:
    """Bytes of the tensors of an encoding."""
    return encoding.nbytes if isinstance(encoding, Tensor) else sum(map(num_bytes, _parts(encoding).values()))


def _moved(part: Any, device: torch.device | str) -> Any:
    if isinstance(part, Tensor):
        return part.to(device)
    return _with(part, {name: _moved(value, device) for name, value in _parts(part).items()})


def _joined(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, PackedLayout):
        return PackedLayout.concatenate(parts)
    if not (is_dataclass(first) or isinstance(first, Mapping)):
        raise TypeError(
            f"an encoding holds a {type(first).__name__}: expected packed token streams, tensors [instances, ...], or "
            "dataclasses of these; see encode_texts in docs/add_a_backbone.md"
        )
    each = [_parts(part) for part in parts]
    return _with(first, {name: _joined([one[name] for one in each]) for name in each[0]})


def _parts(encoding: Any) -> Mapping[str, Any]:
    """What a dataclass or a mapping, such as the notes that a stream carries, holds; nothing of others."""
    if isinstance(encoding, Mapping):
        return encoding
    return {field.name: getattr(encoding, field.name) for field in fields(encoding)} if is_dataclass(encoding) else {}


def _with(encoding: Any, parts: dict[str, Any]) -> Any:
    """The same with other parts."""
    if isinstance(encoding, Mapping):
        return parts
    return replace(encoding, **parts) if parts else encoding
