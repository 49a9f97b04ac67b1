"""What is concluded from numbers: collapse, spreads, Pareto fronts, estimates, labels."""

from itertools import pairwise
from math import isnan
from types import SimpleNamespace
from typing import cast

import pytest

from smarttrim_mm.engine.compare_plan import DENSE
from smarttrim_mm.engine.compare_results import Result, collapse
from smarttrim_mm.engine.compare_runs import Run
from smarttrim_mm.engine.compare_summary import Spread, Summary, pareto_front, with_fronts
from smarttrim_mm.engine.comparison import compare, compare_seeds
from smarttrim_mm.visualization.trade_off import Point, spread_labels


def answers(right: int, count: int = 10) -> list[dict]:
    return [
        {"question_id": i, "image_id": i, "answer": "yes" if i < 7 else "no", "predicted_answer": None if i >= right else
         ("yes" if i < 7 else "no")}
        for i in range(count)
    ]  # fmt: skip


def test_a_run_as_good_as_a_constant_answer_has_collapsed():
    spread = [0.2, 0.5, 0.9]
    assert collapse(0.7, answers(7), spread, True) == "accuracy not above 0.7000, a constant answer's"
    assert collapse(0.8, answers(8), spread, True) == ""


def test_a_policy_that_keeps_the_same_of_every_input_has_collapsed():
    assert collapse(0.9, answers(9), [0.5] * 99 + [0.9], True) == "all inputs keep 0.50-0.50"  # but for one
    assert collapse(0.9, answers(9), [0.5, 0.505] * 50, True) == "all inputs keep 0.50-0.51"
    assert collapse(0.9, answers(9), [0.5, 0.505] * 50, False) == ""  # as a policy of fixed counts should
    assert collapse(0.9, answers(9), [0.4, 0.6] * 50, True) == ""


def test_spreads():
    assert Spread.of([]) is None
    one, two = Spread.of([0.5]), Spread.of([0.5, 0.7])
    assert one is not None
    assert two is not None
    assert isnan(one.deviation)
    assert two.mean == pytest.approx(0.6)
    assert two.deviation == pytest.approx(0.2 / 2**0.5)


def test_the_front_holds_what_nobody_beats():
    points = {0: (10.0, 0.9), 1: (5.0, 0.8), 2: (6.0, 0.8), 3: (5.0, 0.7), 4: (20.0, 0.9), 5: (1.0, 0.1), 6: (5.0, 0.8)}
    assert pareto_front(points) == [0, 1, 5, 6]


def test_rows_of_which_other_seeds_are_done_compare():
    """The second seed is an easy one: who has not run it yet is no worse for that."""

    def summary(name, accuracies):
        numbers = {seed: {"accuracy": value, "multiply_adds": 5.0} for seed, value in accuracies.items()}
        results = [Result(cast(Run, SimpleNamespace(seed=seed)), name, "done", numbers=each) for seed, each in numbers.items()]
        return Summary(name, None, tuple(results))

    dense = summary(DENSE, {0: 0.80, 1: 0.96})
    found = with_fronts([dense, summary("both", {0: 0.81, 1: 0.97}), summary("first only", {0: 0.83})])
    assert [each.name for each in found if each.fronts] == ["first only"]


def test_differences_over_seeds_are_those_of_their_mean():
    one = compare(answers(9), answers(5))
    assert compare_seeds([(answers(9), answers(5))]) == one
    both = compare_seeds([(answers(9), answers(5)), (answers(7), answers(9))])
    assert both.difference == pytest.approx((0.4 - 0.2) / 2)
    assert both.questions == 10
    assert both.standard_error < one.standard_error + 0.2
    with pytest.raises(ValueError, match="asked of one model only"):
        compare_seeds([(answers(9), answers(5)), (answers(7, 9), answers(9, 9))])


def test_labels_are_moved_apart_and_keep_their_order():
    placed = spread_labels([0.5, 0.5, 0.9, 0.99, 1.0], 0.1)
    assert placed == sorted(placed)
    assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in pairwise(placed))
    assert max(placed) <= 1.0
    assert spread_labels([0.1, 0.8], 0.1) == [0.1, 0.8]


def test_a_point_has_the_mean_of_its_seeds():
    assert Point((1.0, 3.0), (0.5, 0.7)).mean == pytest.approx((2.0, 0.6))
