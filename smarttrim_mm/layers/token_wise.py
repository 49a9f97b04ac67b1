"""What a layer does to each token alone, around its attentions: as it is, or through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smarttrim_mm.utils.direct import direct

Map = Callable[[Tensor], Tensor]

# Graphs of one function of one model: kinds of layers, each with one token alone apart, in each dtype and kind of pass.
_MOST_GRAPHS = 32
_WITH_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")


def add_branch(x: Tensor, y: Tensor, branch: Map | None, norm: Map, pre_norm: bool) -> Tensor:
    """Ends a sub-layer.

    Args:
        x: What it was given, [..., D].
        y: What it made of that, [..., D].
        branch: What happens to ``y`` before it is added (LayerScale; in training, dropout and stochastic depth); None: nothing.
        norm: The sub-layer's LayerNorm.
        pre_norm: Whether the norm came before the sub-layer.

    Returns:
        [..., D].
    """
    x = x + (y if branch is None else branch(y))
    return x if pre_norm else norm(x)


def mlp_sublayer(x: Tensor, fc1: Map, act: Map, fc2: Map, branch: Map | None, norm: Map, pre_norm: bool) -> Tensor:
    """A feed-forward sub-layer, whole.

    Args:
        x: Tokens, [..., D].
        fc1: The first Linear.
        act: Its activation.
        fc2: The second Linear.
        branch: As in :func:`add_branch`.
        norm: As in :func:`add_branch`.
        pre_norm: As in :func:`add_branch`.

    Returns:
        [..., D].
    """
    y = fc2(act(fc1(norm(x) if pre_norm else x)))
    return add_branch(x, y, branch, norm, pre_norm)


class TokenWise:
    """Runs :func:`add_branch` and :func:`mlp_sublayer` as they are."""

    def add_branch(self, x: Tensor, y: Tensor, branch: Map | None, norm: Map, pre_norm: bool) -> Tensor:
        return add_branch(x, y, branch, norm if pre_norm else direct(norm), pre_norm)

    def mlp_sublayer(self, x: Tensor, fc1: Map, act: Map, fc2: Map, branch: Map | None, norm: Map, pre_norm: bool) -> Tensor:
        return mlp_sublayer(x, direct(fc1), act, direct(fc2), branch, direct(norm), pre_norm)


class CompiledTokenWise(TokenWise):
    """Runs them through ``torch.compile`` where no gradients are recorded.

    The number of tokens is a free dimension, and a layer's modules are arguments, so that one graph serves all lengths and all
    layers of a kind; a single token has one of its own.

    Args:
        **options: Further arguments of ``torch.compile``: ``mode``, ``options`` or ``backend``.

    Raises:
        ValueError: If there are others, or the mode records CUDA graphs, whose outputs the next layer would overwrite.
    """

    def __init__(self, **options: Any) -> None:
        unknown = sorted(set(options) - {"mode", "options", "backend"})
        if unknown:
            raise ValueError(f"compile holds {unknown}; expected True, or some of ['backend', 'mode', 'options']")
        if options.get("mode") in _WITH_CUDA_GRAPHS:
            raise ValueError(
                f"compile.mode is {options['mode']!r}, which records CUDA graphs: a layer's output would be overwritten by the "
                "next one's. Choose 'default' or 'max-autotune-no-cudagraphs'"
            )
        limits: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": _MOST_GRAPHS}
        fixed = {"fullgraph": True, "dynamic": False, **limits}
        self._add_branch = torch.compile(add_branch, **fixed, **options)
        self._mlp_sublayer = torch.compile(mlp_sublayer, **fixed, **options)

    def add_branch(self, x: Tensor, y: Tensor, branch: Map | None, norm: Map, pre_norm: bool) -> Tensor:
        if torch.is_grad_enabled() or (pre_norm and branch is None):  # a sum alone is one kernel as it is
            return super().add_branch(x, y, branch, norm, pre_norm)
        return self._on_rows(self._add_branch, (x, y), branch, norm, pre_norm)

    def mlp_sublayer(self, x: Tensor, fc1: Map, act: Map, fc2: Map, branch: Map | None, norm: Map, pre_norm: bool) -> Tensor:
        if torch.is_grad_enabled():
            return super().mlp_sublayer(x, fc1, act, fc2, branch, norm, pre_norm)
        return self._on_rows(self._mlp_sublayer, (x,), fc1, act, fc2, branch, norm, pre_norm)

    def _on_rows(self, compiled: Callable[..., Tensor], tokens: tuple[Tensor, ...], *others: Any) -> Tensor:
        """Calls a compiled function on tokens [..., D] as [S, D]."""
        rows = [x.reshape(-1, x.shape[-1]) for x in tokens]
        for x in rows:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        try:
            return compiled(*rows, *others).view(tokens[0].shape)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise RuntimeError(
                f"compile is set, but torch.compile failed on {rows[0].device}: {error.inner_exception}. It needs a C++ "
                "compiler (g++ or clang++) on the PATH, or named by CXX, and Triton on a GPU. Install it, or leave "
                "model.compile out"
            ) from error
