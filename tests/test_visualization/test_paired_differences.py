"""The picture of differences to the dense model: every row is on it, with its seeds, and unknown errors have no bar."""

import numpy as np
import pytest

from smarttrim_mm.visualization.figures import render
from smarttrim_mm.visualization.paired_differences import Difference, draw_differences

ROWS = [
    Difference("one", (-0.4, 0.2, -0.1), 0.3, 1),
    Difference("$two_sided$, of a longer name", (-6.0, -4.0), 1.5, 2),
    Difference("earlier", (0.5,), None, 3),
]


def test_every_row_has_its_line_in_the_order_of_the_plan():
    figure = draw_differences([("2x", ROWS)], accuracy="accuracy", title="plan")
    (panel,) = figure.axes
    assert [text.get_text() for text in panel.get_yticklabels()] == [row.name for row in reversed(ROWS)]
    assert panel.get_title(loc="left") == "2x"
    assert render(figure).std() > 1


def test_all_seeds_and_bars_are_inside():
    (panel,) = draw_differences([("2x", ROWS)], accuracy="accuracy", title="plan").axes
    low, high = panel.get_xlim()
    assert low < -6.5 and high > 0.5  # -5 - 1.5
    drawn = np.concatenate([np.atleast_1d(line.get_xdata()) for line in panel.lines])
    for row in ROWS:
        assert np.isclose(drawn, np.mean(row.seeds)).any()
        for seed in row.seeds:
            assert np.isclose(drawn, seed).any()


@pytest.mark.parametrize(("error", "bars"), [(0.2, 1), (None, 0)])
def test_an_unknown_error_has_no_bar(error, bars):
    (panel,) = draw_differences([("2x", [Difference("one", (0.1, 0.3), error, 1)])], accuracy="a", title="t").axes
    assert len(panel.containers) == bars


def test_budgets_share_their_axis():
    figure = draw_differences([("1.5x", ROWS[:1]), ("at their own compute", ROWS[1:])], accuracy="a", title="t")
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert not first.get_xlabel() and "points" in second.get_xlabel()
