"""Calls of a host's plain modules without the detour of ``Module.__call__``.

A small model's forward is made of a hundred products of a few microseconds each, and ``Module.__call__`` with its look-ups of
parameters takes two more for every one of them: a tenth of such a forward. A large model does not notice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules import module as torch_module

from smarttrim_mm.utils.watch import has_own_call

_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)


def direct(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What computes ``module(x)`` as it is now: for a plain Linear or LayerNorm its function alone, else the module.

    A module is not plain if its class is another one (a quantised or parametrised Linear, an adapter), if a hook is on it or
    on all modules, or if its forward or its call was replaced. What is returned is for use at once: it does not see what
    happens to the module later.
    """
    kind = type(module)  # exactly: subclasses compute something else
    if kind is nn.Linear:
        return _linear(module) if _is_plain(module) else module  # type: ignore[arg-type]
    if kind is nn.LayerNorm:
        return _layer_norm(module) if _is_plain(module) else module  # type: ignore[arg-type]
    return module


def parameter(module: nn.Module, name: str) -> Tensor | None:
    """``getattr(module, name)`` of a parameter, without the search that comes first."""
    found = module._parameters.get(name)
    return getattr(module, name) if found is None else found


def _is_plain(module: nn.Module) -> bool:
    """Whether its call is its class's forward and nothing else, as ``Module._call_impl`` asks."""
    return not (
        has_own_call(module)
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or any(_GLOBAL_HOOKS)
    )


def _linear(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight, bias = parameter(module, "weight"), parameter(module, "bias")
    assert weight is not None
    return lambda x: linear(x, weight, bias)


def _layer_norm(module: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    shape, eps = module.normalized_shape, module.eps
    weight, bias = parameter(module, "weight"), parameter(module, "bias")
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
