import pytest

from smarttrim_mm.engine.timing import Spread, Timings, interleave


class FakeClock:
    """Time passes only while a contender runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def contender(clock: FakeClock, calls: list, name: str, seconds: float):
    def run(batch):
        calls.append((name, batch))
        clock.now += seconds * batch
        return f"{name}({batch})"

    return run


def test_every_round_has_a_new_batch_and_another_first_contender():
    clock, calls = FakeClock(), []
    contenders = {name: contender(clock, calls, name, 1.0) for name in "abc"}
    interleave(contenders, [1, 2, 3, 4], warmup=1, clock=clock)
    rounds = [calls[i : i + 3] for i in range(0, 12, 3)]
    assert ["".join(name for name, _ in one) for one in rounds] == ["abc", "bca", "cab", "abc"]
    assert [{batch for _, batch in one} for one in rounds] == [{1}, {2}, {3}, {4}]


def test_ratios_are_taken_within_rounds_and_the_warm_up_is_left_out():
    clock, calls = FakeClock(), []
    contenders = {"base": contender(clock, calls, "base", 3.0), "new": contender(clock, calls, "new", 2.0)}
    timings = interleave(contenders, [100, 1, 2, 10], warmup=1, clock=clock)
    assert timings.rounds == 3
    assert timings.seconds["base"] == pytest.approx([3, 6, 30])
    assert timings.speedup("new", "base") == Spread(1.5, 1.5, 1.5)
    assert timings.milliseconds("new") == Spread(4000.0, 3000.0, 12000.0)


def test_results_are_handed_over_outside_the_timing():
    clock, calls, seen = FakeClock(), [], []

    def after(name, batch, result):
        clock.now += 50
        seen.append((name, batch, result))

    timings = interleave({"a": contender(clock, calls, "a", 1.0)}, [1, 2], warmup=1, after=after, clock=clock)
    assert seen == [("a", 2, "a(2)")]
    assert timings.seconds == {"a": [2.0]}


def test_every_run_is_told_outside_the_timing():
    clock, told = FakeClock(), []

    def on_run():
        clock.now += 50
        told.append(1)

    timings = interleave({"a": contender(clock, [], "a", 1.0)}, [1, 2], warmup=1, on_run=on_run, clock=clock)
    assert len(told) == 2
    assert timings.seconds == {"a": [2.0]}


def test_device_is_waited_for_before_and_after_each_run():
    clock, events = FakeClock(), []
    contenders = {"a": lambda batch: events.append("run")}
    interleave(contenders, [1, 2], warmup=0, synchronize=lambda: events.append("wait"), clock=clock)
    assert events == ["wait", "run", "wait"] * 2


def test_median_and_quartiles():
    timings = Timings({"base": [4.0, 8.0, 6.0, 2.0, 10.0], "new": [2.0, 2.0, 2.0, 2.0, 2.0]})
    assert timings.speedup("new", "base") == Spread(3.0, 2.0, 4.0)


def test_nothing_to_time_is_an_error():
    with pytest.raises(ValueError, match="contenders is empty"):
        interleave({}, [1])
    with pytest.raises(ValueError, match="beyond the warm-up of 2"):
        interleave({"a": lambda batch: None}, [1, 2])
