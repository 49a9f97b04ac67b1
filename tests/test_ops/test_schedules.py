import math
from itertools import pairwise

import pytest

from smarttrim_mm.ops.schedules import SCHEDULES, check_schedule, schedule, window_progress

PINNED = {
    "linear": (0.0, 0.25, 0.5, 0.75, 1.0),
    "cosine": (0.0, 0.14644660940672624, 0.5, 0.8535533905932737, 1.0),
    "exponential": (0.0, 0.7183353083752138, 0.9241418199787564, 0.9831063727782339, 1.0),
    "step": (0.0, 0.25, 0.5, 0.75, 1.0),
    "constant": (1.0, 1.0, 1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("kind", sorted(SCHEDULES))
def test_values_are_pinned(kind):
    assert [schedule(kind, i / 4) for i in range(5)] == pytest.approx(PINNED[kind], abs=1e-12)


@pytest.mark.parametrize("kind", sorted(SCHEDULES))
def test_rises_from_0_to_1_and_never_falls(kind):
    values = [schedule(kind, i / 200, steps=7) for i in range(201)]
    assert all(a <= b for a, b in pairwise(values))
    assert values[0] >= 0.0 and values[-1] == 1.0


def test_steps_are_equal_stairs_despite_rounding():
    assert [schedule("step", i / 10, steps=10) for i in range(11)] == pytest.approx([i / 10 for i in range(11)])
    assert {schedule("step", i / 100, steps=3) for i in range(100)} == {0.0, 1 / 3, 2 / 3}


def test_rate_sharpens_exponential():
    assert schedule("exponential", 0.1, rate=10.0) > schedule("exponential", 0.1, rate=1.0) > 0.1


def test_window():
    assert [window_progress(t, 0.2, 0.6) for t in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert [window_progress(t, 0.5, 0.5) for t in (0.4, 0.5, 0.6)] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("begin, end", [(-0.1, 0.5), (0.6, 0.5), (0.0, 1.1)])
def test_window_out_of_order(begin, end):
    with pytest.raises(ValueError, match=f"begin is {begin} and end is {end}"):
        window_progress(0.5, begin, end)


@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan])
def test_progress_out_of_range(t):
    with pytest.raises(ValueError, match=f"t is {t}"):
        schedule("linear", t)


def test_unknown_names_and_settings():
    with pytest.raises(ValueError, match="schedule is 'cosinus'; did you mean 'cosine'"):
        check_schedule("cosinus")
    with pytest.raises(ValueError, match="steps is 0"):
        check_schedule("step", steps=0)
    with pytest.raises(ValueError, match=r"rate is -1\.0"):
        check_schedule("exponential", rate=-1.0)
