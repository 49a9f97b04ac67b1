"""Noticing that tensors changed, so that what was made of them can be made anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn


class WatchedTensor:
    """Tells whether a tensor still holds what it held.

    Seen are changes in place, data that were put in its place (``module.to``), and another tensor. Not seen is what is
    written past autograd, through ``tensor.data`` or by torch's fused optimizers (``AdamW(fused=True)``): whoever does that
    says so, by ``eval()`` for a policy. An inference tensor does not count its changes: it is never taken for unchanged.

    Args:
        tensor: The tensor.
    """

    __slots__ = ("_alias", "_pointer", "_tensor", "_version")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._alias = tensor.detach()  # holds the memory, so that no other tensor is given its address
        self._pointer = tensor.data_ptr()
        self._version = None if tensor.is_inference() else tensor._version

    def unchanged(self, tensor: Tensor | None) -> bool:
        """Whether this is the tensor, as it was."""
        return (
            tensor is self._tensor
            and self._version is not None
            and tensor._version == self._version
            and tensor.data_ptr() == self._pointer
        )


class WatchedModules:
    """Tells whether modules still compute what they computed: their parameters, children and forwards.

    Args:
        container: Holds the modules.
        names: Which of its children are meant.
    """

    def __init__(self, container: nn.ModuleDict, names: Iterable[str]) -> None:
        self._modules: list[tuple[dict[str, Any], str, nn.Module]] = []
        self._parameters: list[tuple[dict[str, Any], str, Tensor, int | None, int, Tensor]] = []
        for holder, name, module in _tree(container._modules, names):
            self._modules.append((holder, name, module))
            for key, value in module._parameters.items():
                if value is not None:
                    version = None if value.is_inference() else value._version
                    alias = value.detach()  # as of a WatchedTensor
                    self._parameters.append((module._parameters, key, value, version, value.data_ptr(), alias))

    def unchanged(self) -> bool:
        """Whether nothing changed, and no module has got a hook."""
        for holder, name, module in self._modules:
            if holder.get(name) is not module or module._forward_hooks or module._forward_pre_hooks:
                return False
            if "forward" in module.__dict__:
                return False
        # written out, not by WatchedTensor: it is asked of dozens of parameters in every layer
        for holder, name, value, version, pointer, _ in self._parameters:
            if holder.get(name) is not value or version is None or value._version != version or value.data_ptr() != pointer:
                return False
        return True


def has_own_call(module: nn.Module) -> bool:
    """Whether calling the module does more than its class says: a hook, or a forward that was put in its place."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in module.__dict__


def _tree(holder: dict[str, Any], names: Iterable[str]) -> Iterator[tuple[dict[str, Any], str, nn.Module]]:
    for name in names:
        if (module := holder[name]) is not None:
            yield holder, name, module
            yield from _tree(module._modules, list(module._modules))
