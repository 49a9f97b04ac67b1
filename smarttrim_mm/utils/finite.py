"""Where a pass first leaves the finite numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_UNWRITTEN = ("empty", "new_empty", "empty_like", "empty_strided", "resize")  # what they hold is not computed yet


def is_broken(value: Tensor) -> Tensor:
    """Whether a tensor holds a NaN or plus infinity; minus infinity is what masks are made of. bool []."""
    return (value.isnan() | value.isposinf()).any()


def broken_tensors(tensors: Mapping[str, Tensor | None]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity, read from the device at once."""
    there = {name: value for name, value in tensors.items() if value is not None and value.is_floating_point()}
    if not there:
        return []
    flags = torch.stack([~value.detach().isfinite().all() for value in there.values()]).tolist()
    return [name for name, flag in zip(there, flags, strict=True) if flag]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity: one norm over all, read once; each by itself only if that overflows."""
    tensors = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not tensors or torch.nn.utils.get_total_norm(tensors).isfinite():
        return True
    return not broken_tensors({str(number): tensor for number, tensor in enumerate(tensors)})


@dataclass(frozen=True)
class Finding:
    """The first value of a pass that is not finite.

    Attributes:
        operation: What computed it, as torch names it: ``'aten.addmm'``.
        parameter: The parameter that it was computed with, or, for an operation without one, the last used before it; None:
            none was used yet.
        with_parameter: Whether the operation itself used the parameter.
    """

    operation: str
    parameter: str | None
    with_parameter: bool

    def __str__(self) -> str:
        if self.parameter is None:
            return f"{self.operation}, before any parameter was used"
        return f"{self.operation} {'with' if self.with_parameter else 'after'} {self.parameter}"


class FirstNonFinite(TorchDispatchMode):
    """Watches every operation within it for the first result that is a NaN or plus infinity.

    Layers are run by functions on the host's parameters, which no module's forward hook sees; an operation is placed by the
    parameter that it reads. Every operation waits for the device, so that this is for a diagnosis alone.

    Args:
        model: Whose parameters are named.

    Attributes:
        finding: The first result that is not finite; None so far.
        used: The parameters, in the order in which they were first used.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.finding: Finding | None = None
        self.used: list[str] = []
        self._names = {parameter.untyped_storage().data_ptr(): name for name, parameter in model.named_parameters()}
        self._last: str | None = None
        self._held: list[Tensor] = []  # what was made of parameters lives on, so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        named = [name for value in _tensors(args) if (name := self._names.get(value.untyped_storage().data_ptr()))]
        if named:
            self._last = named[-1]
            self.used += [name for name in dict.fromkeys(named) if name not in self.used]
        name = func.overloadpacket.__name__.rstrip("_")
        for value in _tensors(result if isinstance(result, tuple | list) else (result,))[:1]:
            if name == "_to_copy" and named:  # a parameter under autocast
                self._names[value.untyped_storage().data_ptr()] = named[-1]
                self._held.append(value)
            unseen = self.finding is None and name not in _UNWRITTEN and value.is_floating_point()
            if unseen and bool(is_broken(value)):
                self.finding = Finding(f"aten.{name}", self._last, bool(named))
        return result


def diagnose(model: nn.Module, losses: Callable[[], Mapping[str, Tensor]]) -> str:
    """Says where a training step leaves the finite numbers, by running it once more; gradients are cleared.

    Args:
        model: The model in training, with its weights of before the step.
        losses: Runs the forward pass as the step did; returns the losses (names with ``'loss'``), among other numbers.

    Returns:
        A sentence that names the layer or parameter.
    """
    broken = broken_tensors(dict(model.named_parameters()))
    if broken:
        return f"The weights themselves are not finite before the step: {_listed(broken)}."
    model.zero_grad(set_to_none=True)
    with torch.enable_grad(), FirstNonFinite(model) as watch:
        found = losses()
    where = _layer_of(model, watch.finding.parameter if watch.finding else None)
    if watch.finding is not None:
        return f"Run again, the forward pass first leaves the finite numbers{where} at {watch.finding}."
    total = torch.stack([value.mean() for name, value in found.items() if "loss" in name]).sum()
    total.backward()
    broken = broken_tensors({name: parameter.grad for name, parameter in model.named_parameters()})
    if not broken:
        return (
            "Run again, the forward pass and its gradients are finite: the values came from another process, from gradients "
            "accumulated before, or from the machine."
        )
    order = {name: number for number, name in enumerate(watch.used)}
    first = max(broken, key=lambda name: order.get(name, -1))  # the backward pass goes the other way round
    return (
        "Run again, the forward pass is finite, and the backward pass first leaves the finite numbers"
        f"{_layer_of(model, first)} at the gradient of {first}; so do {len(broken)} gradients in all."
    )


def _layer_of(model: nn.Module, parameter: str | None) -> str:
    """`` in layer 'image.2'``, where a backbone's steps tell; the view that owns the parameter is of that step."""
    steps = getattr(getattr(model, "backbone", None), "steps", {})
    owners = {id(layer.owner): step.name for stage in steps.values() for step in stage for layer in step.layers.values()}
    names = {name: owners[id(module)] for name, module in model.named_modules() if id(module) in owners}
    step = next((step for name, step in names.items() if parameter and parameter.startswith(f"{name}.")), None)
    return f" in layer {step!r}" if step else ""


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
