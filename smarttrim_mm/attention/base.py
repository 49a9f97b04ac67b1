"""What a backend of packed attention is, what it is given, and which one is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from smarttrim_mm.ops.device import to_device
from smarttrim_mm.registry import ATTENTION_BACKENDS

AUTO = "auto"


@dataclass(frozen=True)
class Sequences:
    """Where the sequences of a packed tensor lie.

    Attributes:
        lengths: Tokens of each, on the host.
        cu_seqlens: Where each begins, and the end, on the device, int32 [B + 1].
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Sequences:
        """Sequences of known lengths."""
        ends = np.cumsum([0, *lengths], dtype=np.int32)
        return cls(tuple(lengths), to_device(ends, torch.device(device)))


@dataclass(frozen=True)
class HeadPlan:
    """Which heads an attention runs for which instance.

    Attributes:
        gate: True where a head is on, on the device, bool [B, H].
        on: The heads of each instance that are on, ascending, on the host.
    """

    gate: Tensor
    on: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, gate: Tensor, rows: Sequence[Sequence[int | float]] | None = None) -> HeadPlan:
        """The plan of gates [B, H].

        Args:
            gate: Above 0 where a head is on.
            rows: The same on the host; None: they are read from the device.
        """
        rows = gate.tolist() if rows is None else rows
        return cls(gate > 0, tuple(tuple(h for h, value in enumerate(row) if value > 0) for row in rows))

    @property
    def heads(self) -> int:
        return self.gate.shape[1]

    @property
    def pairs(self) -> int:
        """How many (instance, head) pairs are on."""
        return sum(len(on) for on in self.on)

    @property
    def whole(self) -> bool:
        """Whether every head of every instance is on."""
        return self.pairs == len(self.on) * self.heads

    def union(self) -> tuple[int, ...]:
        """The heads that are on for any instance, ascending."""
        return tuple(sorted(set().union(*self.on)))

    def of_heads(self, heads: Sequence[int]) -> HeadPlan:
        """The plan of some of the heads (ascending), numbered anew."""
        if len(heads) == self.heads:
            return self
        number = {head: i for i, head in enumerate(heads)}
        on = tuple(tuple(number[head] for head in row if head in number) for row in self.on)
        return HeadPlan(torch.stack([self.gate[:, head] for head in heads], 1), on)


class AttentionBackend:
    """Attention of each instance's queries over its own keys: one way to compute it.

    A subclass is registered in ``ATTENTION_BACKENDS``. It has no parameters, and gives every instance what it would give it
    alone, up to rounding.

    Attributes:
        order: The available backend of the lowest order is chosen where a config names none.
        runs_alone: Whether a batch is a loop over its instances, so that the layer may as well project the heads of each
            instance apart.
        bitwise: Whether an instance gets, bit for bit, what it would get alone, whatever else is in the batch. Else it does
            up to rounding: with values of size 1, within 1e-5 in fp32, 4e-3 in fp16 and 3e-2 in bf16.
    """

    order: ClassVar[int]
    runs_alone: ClassVar[bool] = False
    bitwise: ClassVar[bool] = False

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this backend cannot run there; None: it can."""
        raise NotImplementedError

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, of_q: Sequences, of_k: Sequences, heads: HeadPlan | None = None
    ) -> tuple[Tensor, int]:
        """Attends.

        Args:
            q: Packed queries, [S, H, d].
            k: Packed keys, [M, H, d].
            v: Packed values, [M, H, d].
            of_q: Sequences of the queries, B of them that sum to S.
            of_k: Sequences of the keys, B of them that sum to M.
            heads: Which (instance, head) pairs are on; None: all.

        Returns:
            [S, H, d], zero where a head is off, and the multiply-adds that were executed.
        """
        raise NotImplementedError


class ChosenAttention:
    """The backend that a config names, or else the best one that can run.

    Args:
        backend: ``'auto'``, a name in ``ATTENTION_BACKENDS``, or a config of it.

    Raises:
        KeyError: If the name is unknown.
    """

    def __init__(self, backend: str | Mapping[str, Any] = AUTO) -> None:
        config = {"type": backend} if isinstance(backend, str) else dict(backend)
        self.chosen: AttentionBackend | None = None if config.get("type") == AUTO else ATTENTION_BACKENDS.build(config)

    def on(self, device: torch.device, dtype: torch.dtype) -> AttentionBackend:
        """The backend for tensors of a device and dtype.

        Raises:
            ValueError: If the one that was named cannot run there.
        """
        if self.chosen is None:
            return _best(device, dtype)
        reason = _reason(self.chosen, device, dtype)
        if reason is not None:
            name = type(self.chosen).__name__
            raise ValueError(f"attention is {name!r}, which cannot run on {device} in {dtype}: {reason}. Choose {AUTO!r}")
        return self.chosen


def ranked() -> list[type[AttentionBackend]]:
    """The registered backends, best first."""
    ATTENTION_BACKENDS.import_from_location()
    return sorted(ATTENTION_BACKENDS.module_dict.values(), key=lambda kind: kind.order)


@lru_cache(maxsize=64)
def _best(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    reasons = []
    for kind in ranked():
        backend = kind()
        reason = backend.unavailable(device, dtype)
        if reason is None:
            return backend
        reasons.append(f"{kind.__name__}: {reason}")
    raise ValueError(f"no attention backend can run on {device} in {dtype}. {'; '.join(reasons)}")


@lru_cache(maxsize=64)
def _reason(backend: AttentionBackend, device: torch.device, dtype: torch.dtype) -> str | None:
    return backend.unavailable(device, dtype)
