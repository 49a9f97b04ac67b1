"""Honest wall-clock comparison of contenders, with the compute of what they decided and the memory that they took.

All run in one process on new batches of unshared image-question pairs, see
:func:`~smarttrim_mm.engine.timing.interleave`. The ratios are the result; times in ms depend on the machine and its load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from smarttrim_mm.engine.contenders import DENSE_HOSTS, GRAPHED, HOST, PACKED, Contender, path_of, sdpa_baseline
from smarttrim_mm.engine.machine import synchronizer
from smarttrim_mm.engine.memory import MIB, peak_growth, storage_bytes
from smarttrim_mm.engine.timing import Timings, interleave
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM

WARMUP = 3
_MILLION = 1e6


@dataclass
class Compute:
    """Sums over the timed samples of one contender, multiply-adds.

    Attributes:
        samples: How many samples.
        dense: Of the whole model on every real token: what a host computes on padding is not in it.
        decided: Of what was kept.
        executed: Of what was multiplied.
        paths: How the layers ran.
    """

    samples: int = 0
    dense: float = 0.0
    decided: float = 0.0
    executed: float = 0.0
    paths: frozenset[str] = frozenset()

    def add(self, record: TrimRecord) -> None:
        """Adds a batch."""
        self.samples += record.samples
        self.dense += float(record.dense_multiply_adds().double().sum())
        self.decided += float(record.multiply_adds().double().sum())
        self.executed += record.executed_multiply_adds() * record.samples
        self.paths |= {path_of(record)}

    def each(self, total: float) -> float:
        """A sum as M per sample."""
        return total / self.samples / _MILLION


def compare_clocks(
    model: TrimmedVLM,
    contenders: Mapping[str, Contender],
    batches: Iterator[VLMInputs],
    *,
    warmup: int = WARMUP,
    on_run: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Times contenders, counts what they decided, and then, untimed, on the last batch, measures their memory.

    Args:
        model: The model, in evaluation mode.
        contenders: By name, those of :func:`~smarttrim_mm.engine.contenders.dense_contenders` among them.
        batches: Unshared pairs, a new batch for each round, the warm-up's first.
        warmup: Rounds that are not timed.
        on_run: Told of each run: ``len(contenders)`` in each round, the warm-up's too, and as many for memory.

    Returns:
        JSON data: ``rounds``; ``sdpa_baseline``, the name of the host's dense forward with scaled_dot_product_attention, None
        if there is none; ``held_mib``, the model's weights; ``dense_multiply_adds``; the greatest difference between the logits
        of the host's and the packed dense forwards; and ``contenders``, see :func:`_row`.
    """
    compute: dict[str, Compute] = {name: Compute() for name in contenders}
    dense_logits: dict[str, Tensor] = {}
    differences: list[Tensor] = []
    last: list[VLMInputs] = []

    def after(name: str, batch: VLMInputs, result: tuple[Tensor, TrimRecord | None]) -> None:
        logits, record = result
        last[:] = [batch]
        if name in (HOST, PACKED):
            dense_logits[name] = logits.float()
        if len(dense_logits) == 2:
            both = torch.stack([dense_logits[HOST], dense_logits[PACKED]])
            both = both[:, ~both.isneginf().any(0)]  # an answer that is no candidate has minus infinity
            differences.append((both[0] - both[1]).abs().max())
            dense_logits.clear()
        if record is not None:
            compute[name].add(record)

    with torch.inference_mode():
        timings = interleave(contenders, batches, warmup=warmup, synchronize=synchronizer(model), after=after, on_run=on_run)
        peaks = {}
        for name, run in contenders.items():
            if name != GRAPHED:  # a graph holds its memory from its capture on, and would seem to take none
                peaks[name] = peak_growth(partial(run, last[0]), last[0].images.device)
            on_run()
    held = storage_bytes([*model.parameters(), *model.buffers()])
    sdpa, whole = sdpa_baseline(model), compute[PACKED]
    return {
        "rounds": timings.rounds,
        "sdpa_baseline": sdpa,
        "pairs": whole.samples,
        "held_mib": held / MIB,
        "dense_multiply_adds": whole.each(whole.dense),
        "largest_logit_difference_of_dense_forwards": float(torch.stack(differences).max()),
        "contenders": {name: _row(name, timings, compute, peaks, held, sdpa) for name in contenders},
    }


def _row(
    name: str, timings: Timings, compute: Mapping[str, Compute], peaks: Mapping[str, int], held: int, sdpa: str | None
) -> dict[str, Any]:
    """What a contender took, as JSON data.

    ``speedup`` is over the host, ``speedup_over_sdpa`` over the baseline with SDPA (None without one), ``speedup_over_packed``
    over the packed dense execution, all medians and quartiles; ``dense_over_decided`` is the ratio of multiply-adds, and
    ``share_kept`` what the clock keeps of it: the speed-up over SDPA (else over the host) divided by it. ``peak_mib`` is
    what tensors take beyond the weights and the batch, ``memory_ratio`` that over the baseline's, and
    ``memory_ratio_with_weights`` the same with the weights added to both; None where it was not measured.
    """
    own = compute[name]
    is_host = name in DENSE_HOSTS
    if is_host:
        own = compute[PACKED]
    counted = own.samples > 0
    ratio = 1.0 if is_host else own.dense / own.decided if counted else None
    baseline = sdpa or HOST
    over_baseline = asdict(timings.speedup(name, baseline))
    peak = peaks.get(name)
    return {
        "path": DENSE_HOSTS[name] if is_host else _in_words(own.paths),
        "ms_per_batch": asdict(timings.milliseconds(name)),
        "speedup": asdict(timings.speedup(name, HOST)),
        "speedup_over_sdpa": None if sdpa is None else over_baseline,
        "speedup_over_packed": asdict(timings.speedup(name, PACKED)),
        "share_kept": None if ratio is None else {key: value / ratio for key, value in over_baseline.items()},
        "decided_multiply_adds": (own.each(own.dense if is_host else own.decided)) if counted else None,
        "executed_multiply_adds": own.each(own.executed) if counted and not is_host else None,
        "dense_over_decided": ratio,
        "peak_mib": None if peak is None else peak / MIB,
        "memory_ratio": None if peak is None else peak / peaks[baseline],
        "memory_ratio_with_weights": None if peak is None else (held + peak) / (held + peaks[baseline]),
    }


def _in_words(paths: Iterable[str]) -> str | None:
    return ", ".join(sorted(paths)) or None
