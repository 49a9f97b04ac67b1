"""Training state as plain data, so that a checkpoint can be read without running any code.

``torch.load(weights_only=True)`` reads tensors, numbers, strings and containers of them. mmengine also keeps history
buffers, numpy scalars and arrays in a checkpoint; :func:`to_plain` writes those as marked dictionaries and
:func:`from_plain` turns them back.
"""

from collections import Counter, OrderedDict
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_MARK = "__plain__"
_LEAVES = (type(None), bool, int, float, complex, str, bytes, torch.Tensor, torch.nn.Parameter, torch.dtype, torch.Size)


def to_plain(value: Any, *, path: str = "", dropped: list[str] | None = None, history: int | None = None) -> Any:
    """Copies a nested value into types that ``weights_only=True`` reads.

    Args:
        value: Nested dicts, lists, tuples and sets of tensors, numbers, strings, numpy data and history buffers.
        path: Where the value stands, for ``dropped`` and errors.
        dropped: Collects ``'path (type)'`` of dictionary entries that have no plain form; they are left out. None: such an
            entry is an error.
        history: Newest entries of a history buffer to keep; None: all.

    Returns:
        The copy. Tensors are shared, not copied.

    Raises:
        TypeError: If something has no plain form and cannot be left out.
    """
    kind = type(value)
    if kind in _LEAVES or kind is Counter:
        return value
    if isinstance(value, HistoryBuffer):
        return _plain_buffer(value, history)
    if isinstance(value, PurePath | str):
        return str(value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        return {_MARK: "ndarray", "data": torch.from_numpy(np.array(value))}
    if isinstance(value, dict):
        return _plain_dict(value, path, dropped, history)
    if isinstance(value, list | tuple | set | frozenset):
        items = [to_plain(item, path=f"{path}[{i}]", history=history) for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else set(items) if isinstance(value, set | frozenset) else items
    raise TypeError(
        f"{path or 'value'} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold as plain data; "
        "store tensors, numbers, strings and containers of them"
    )


def from_plain(value: Any) -> Any:
    """Undoes :func:`to_plain`; data that it did not write passes unchanged."""
    if isinstance(value, dict):
        mark = value.get(_MARK)
        if mark == "history":
            return _buffer(value)
        if mark == "ndarray":
            return value["data"].cpu().numpy()[()]  # without dimensions: a numpy scalar
        if type(value) is Counter:
            return value
        return type(value)((key, from_plain(item)) for key, item in value.items())
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if type(value) is tuple:
        return tuple(from_plain(item) for item in value)
    return value


def _plain_dict(value: dict, path: str, dropped: list[str] | None, history: int | None) -> dict:
    plain: dict = OrderedDict() if isinstance(value, OrderedDict) else {}
    for key, item in value.items():
        here = f"{path}.{key}" if path else str(key)
        try:
            plain[to_plain(key, path=here)] = to_plain(item, path=here, dropped=dropped, history=history)
        except TypeError:
            if dropped is None:
                raise
            dropped.append(f"{here} ({type(item).__module__}.{type(item).__qualname__})")
    return plain


def _plain_buffer(buffer: HistoryBuffer, history: int | None) -> dict[str, Any]:
    values, counts = buffer.data
    newest = slice(None) if history is None else slice(max(len(values) - history, 0), None)
    return {
        _MARK: "history",
        "values": torch.from_numpy(values[newest].copy()),
        "counts": torch.from_numpy(counts[newest].copy()),
        "max_length": buffer.max_length,
    }


def _buffer(plain: dict[str, Any]) -> HistoryBuffer:
    return HistoryBuffer(plain["values"].cpu().numpy(), plain["counts"].cpu().numpy(), plain["max_length"])
