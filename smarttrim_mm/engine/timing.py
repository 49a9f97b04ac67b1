"""Wall-clock comparison of functions on the same batches, so that neither order, load nor repetition favours one."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Spread:
    """Middle and middle half of some numbers.

    Attributes:
        median: The median.
        q1: The 25th percentile.
        q3: The 75th percentile.
    """

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        q1, median, q3 = np.percentile(list(values), (25, 50, 75))
        return cls(float(median), float(q1), float(q3))


@dataclass(frozen=True)
class Timings:
    """What :func:`interleave` measured.

    Attributes:
        seconds: Per contender, the time of each round.
    """

    seconds: Mapping[str, list[float]]

    @property
    def rounds(self) -> int:
        return len(next(iter(self.seconds.values())))

    def milliseconds(self, name: str) -> Spread:
        """Time of a contender, ms per batch."""
        return Spread.of(1000 * value for value in self.seconds[name])

    def speedup(self, name: str, reference: str) -> Spread:
        """How many times faster a contender is than another, from the ratios of each round."""
        return Spread.of(base / own for base, own in zip(self.seconds[reference], self.seconds[name], strict=True))


def interleave(
    contenders: Mapping[str, Callable[[Batch], Any]],
    batches: Iterable[Batch],
    *,
    warmup: int = 2,
    synchronize: Callable[[], None] = lambda: None,
    after: Callable[[str, Batch, Any], None] = lambda *_: None,
    on_run: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Times contenders in turn on every batch.

    Each round takes a new batch and runs all contenders on it, beginning with another one than the round before: a slow
    moment of the machine, and what the first on a batch pays for the others, hit all alike. Ratios are then taken within
    rounds.

    Args:
        contenders: Functions of a batch, by name.
        batches: One for each round, the warm-up's first. No batch should be seen twice, since shapes seen before run faster.
        warmup: Rounds that are not timed.
        synchronize: Waits until the device is idle.
        after: Told of name, batch and result of each timed run, outside the timing.
        on_run: Told of each run, those of the warm-up too, likewise.
        clock: Gives seconds.

    Returns:
        The timings.

    Raises:
        ValueError: If there are no contenders, or no batches beyond the warm-up.
    """
    if not contenders:
        raise ValueError("contenders is empty; expected at least one function to time")
    order = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for number, batch in enumerate(batches):
        first = number % len(order)
        for name in order[first:] + order[:first]:
            synchronize()
            begin = clock()
            result = contenders[name](batch)
            synchronize()
            spent = clock() - begin
            if number >= warmup:
                seconds[name].append(spent)
                after(name, batch, result)
            on_run()
    if not seconds[order[0]]:
        raise ValueError(f"there is no batch beyond the warm-up of {warmup}; give more batches")
    return Timings(seconds)
