import pytest

from smarttrim_mm.ops.collapse import OFF, ON, SAME, collapse_of


def judge(mean, spread=0.1, known=None, missed=True):
    spreads = [] if spread is None else [spread]
    return collapse_of([mean], spreads, known, edge=0.01, least_spread=0.001, missed=missed)


@pytest.mark.parametrize(
    ("mean", "spread", "expected"),
    [
        (0.0, 0.0, OFF),
        (0.009, 0.1, OFF),
        (0.011, 0.1, None),
        (0.5, 0.1, None),
        (0.5, 0.0, SAME),
        (0.5, 0.0011, None),
        (0.5, None, None),  # batches of single instances have no spread
        (0.989, 0.1, None),
        (0.991, 0.1, ON),
        (1.0, 0.0, ON),
    ],
)
def test_kinds(mean, spread, expected):
    assert judge(mean, spread) == expected


def test_all_on_is_no_fault_where_the_target_is_met():
    assert judge(1.0, 0.0, missed=False) is None


@pytest.mark.parametrize(
    ("known", "inside", "outside"),
    [
        (OFF, {"mean": 0.019}, {"mean": 0.021}),
        (ON, {"mean": 0.981}, {"mean": 0.979}),
        (SAME, {"mean": 0.5, "spread": 0.0019}, {"mean": 0.5, "spread": 0.0021}),
    ],
)
def test_to_recover_takes_twice_the_margin(known, inside, outside):
    assert judge(**inside, known=known) == known
    assert judge(**inside) is None
    assert judge(**outside, known=known) is None


def test_all_on_does_not_waver_with_the_target():
    assert judge(1.0, known=ON, missed=False) == ON


def test_a_mean_over_looks_is_judged():
    looks = {"edge": 0.01, "least_spread": 0.001, "missed": True}
    assert collapse_of([0.0, 0.0, 0.06], [0.1], None, **looks) is None
    assert collapse_of([0.5, 0.5], [0.0, 0.01], None, **looks) is None
