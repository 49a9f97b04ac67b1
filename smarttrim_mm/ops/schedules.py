"""Curves that carry a quantity from its first value to its last while training runs."""

import difflib
import math
from collections.abc import Callable


def _linear(t: float, steps: int, rate: float) -> float:
    return t


def _cosine(t: float, steps: int, rate: float) -> float:
    return (1.0 - math.cos(math.pi * t)) / 2.0


def _exponential(t: float, steps: int, rate: float) -> float:
    return math.expm1(-rate * t) / math.expm1(-rate)


def _step(t: float, steps: int, rate: float) -> float:
    return math.floor(t * steps + 1e-9) / steps  # 0.3 * 10 is 2.9999999999999996


def _constant(t: float, steps: int, rate: float) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[[float, int, float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "exponential": _exponential,
    "step": _step,
    "constant": _constant,
}


def check_schedule(kind: str, *, steps: int = 4, rate: float = 5.0) -> None:
    """Checks the settings of a schedule.

    Args:
        kind: Name of the curve.
        steps: Number of equal stairs of ``step``.
        rate: How sharply ``exponential`` moves at first.

    Raises:
        ValueError: If one of them is out of its range.
    """
    if kind not in SCHEDULES:
        near = difflib.get_close_matches(str(kind), SCHEDULES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"schedule is {kind!r}; {hint}expected one of {', '.join(SCHEDULES)}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; a schedule needs at least 1 step")
    if not rate > 0:
        raise ValueError(f"rate is {rate}; expected a number above 0")


def schedule(kind: str, t: float, *, steps: int = 4, rate: float = 5.0) -> float:
    """Maps the progress of training to the progress of a quantity.

    Args:
        kind: ``linear``; ``cosine`` (slow, fast, slow); ``exponential`` (fast at first, the distance left shrinks by
            ``e^-rate`` over the whole way); ``step`` (equal stairs, the last is climbed at ``t = 1``); ``constant`` (at the
            final value from the start).
        t: Progress of training, 0-1.
        steps: Number of equal stairs of ``step``.
        rate: How sharply ``exponential`` moves at first.

    Returns:
        Progress, 0-1; it is 1 at ``t = 1`` whatever the curve.

    Raises:
        ValueError: If ``t`` lies outside 0-1, or a setting is out of its range.
    """
    check_schedule(kind, steps=steps, rate=rate)
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"t is {t}; expected the progress of training between 0 and 1")
    return 1.0 if t == 1.0 else SCHEDULES[kind](t, steps, rate)


def window_progress(t: float, begin: float, end: float) -> float:
    """Progress inside a window of training: 0 before it, 1 after it.

    Args:
        t: Progress of training, 0-1.
        begin: Where the window opens, 0-1.
        end: Where it closes, ``begin``-1; equal to ``begin`` for a jump.

    Raises:
        ValueError: If ``begin`` and ``end`` are not in order within 0-1.
    """
    if not 0.0 <= begin <= end <= 1.0:
        raise ValueError(f"begin is {begin} and end is {end}; expected 0 <= begin <= end <= 1 (fractions of the training)")
    if t >= end:
        return 1.0
    if t <= begin:
        return 0.0
    return (t - begin) / (end - begin)
