"""Where the time of packed passes goes: deciding, cutting, projections, attention, MLPs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import numpy as np

from smarttrim_mm.attention.base import ranked
from smarttrim_mm.engine.contenders import Contender
from smarttrim_mm.layers import run_layer
from smarttrim_mm.layers.token_wise import CompiledTokenWise, TokenWise
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.policies.imposed import ImposedKeep

REST = "the rest"


class PartTimes:
    """Within ``with``, functions that it wrapped tell how long each part of their layers took, without the parts inside it.

    For a device that computes while the host goes on these times mean nothing: on a GPU use ``torch.profiler``.

    Args:
        policies: Whose decisions are timed.
    """

    def __init__(self, policies: Iterable[Policy]) -> None:
        deciding = {type(policy.policy if isinstance(policy, ImposedKeep) else policy) for policy in policies}
        places: list[tuple[str, Any, str]] = [
            ("cutting", run_layer, "apply_decision"),
            ("projections", run_layer, "attend_packed"),
            ("drawing what is imposed", ImposedKeep, "before_layer"),
            *(("deciding", kind, name) for kind in deciding - {ImposedKeep} for name in ("before_layer", "after_attention")),
            *(("attention", kind, "__call__") for kind in ranked()),
            *(("MLPs", kind, "mlp_sublayer") for kind in (TokenWise, CompiledTokenWise)),
            *(("norms and sums", kind, "add_branch") for kind in (TokenWise, CompiledTokenWise)),
        ]
        self._places = [place for place in places if place[2] in vars(place[1])]
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._inside: list[float] = []
        self._passes: dict[str, list[dict[str, float]]] = {}
        self._patches = ExitStack()

    def __enter__(self) -> PartTimes:
        for part, owner, name in self._places:
            self._patches.enter_context(patch.object(owner, name, self._timed(part, vars(owner)[name])))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def of(self, name: str, run: Contender) -> Contender:
        """The same contender, each of whose passes is noted."""

        def noted(batch: Any) -> Any:
            self._spent.clear()
            begin = time.perf_counter()
            result = run(batch)
            whole = time.perf_counter() - begin
            self._passes.setdefault(name, []).append({**self._spent, REST: whole - sum(self._spent.values())})
            return result

        return noted

    def milliseconds(self, name: str, passes: slice) -> dict[str, float]:
        """Median time of each part of a contender's passes, most first, ms per batch.

        Args:
            name: The contender.
            passes: Which of its passes are meant.
        """
        noted = self._passes[name][passes]
        parts = {part: float(np.median([1000 * one.get(part, 0.0) for one in noted])) for part in {p for n in noted for p in n}}
        return dict(sorted(parts.items(), key=lambda pair: -pair[1]))

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - begin
                self._spent[part] += whole - self._inside.pop()
                if self._inside:
                    self._inside[-1] += whole

        return timed


def parts_table(parts: dict[str, dict[str, float]]) -> str:
    """Milliseconds of each part and their share, a line a contender.

    Args:
        parts: As :meth:`PartTimes.milliseconds` gives them, by contender.
    """
    lines = ["where the time goes (ms per batch, share of the pass)"]
    for name, spent in parts.items():
        whole = sum(spent.values())
        lines.append(f"{name:<36}" + ", ".join(f"{part} {ms:.1f} ({ms / whole:.0%})" for part, ms in spent.items()))
    return "\n".join(lines)
