import pytest
from matplotlib.axes import Axes

from smarttrim_mm.engine.cost_sheet import cost_sheet
from smarttrim_mm.visualization.cost_bars import draw_cost, unit_of


@pytest.fixture
def bars(monkeypatch):
    """The heights of every series that is drawn, by label."""
    drawn = {}
    bar = Axes.bar

    def keep(self, x, height, *args, label, **kwargs):
        drawn[label] = list(height)
        return bar(self, x, height, *args, label=label, **kwargs)

    monkeypatch.setattr(Axes, "bar", keep)
    return drawn


def test_a_bar_a_layer_dense_and_at_the_budget(make_model, bars, tmp_path, pixels):
    sheet = cost_sheet(make_model("SmartTrim"), speedup=1.5)
    picture = pixels(draw_cost(sheet, tmp_path / "new" / "cost.png"))
    assert list(bars) == ["dense", "at 1.5x", "SmartTrim itself"]
    assert sum(bars["dense"]) * 1e6 == pytest.approx(sheet.dense, rel=1e-6)
    assert (sum(bars["at 1.5x"]) + sum(bars["SmartTrim itself"])) * 1e6 == pytest.approx(sheet.dense / 1.5, rel=1e-4)
    assert len(bars["dense"]) == len(sheet.layers)
    assert len({tuple(color) for color in picture[::4, ::4].reshape(-1, 3)}) > 3


def test_without_a_budget_there_is_one_series(make_model, bars, tmp_path):
    draw_cost(cost_sheet(make_model()), tmp_path / "cost.png")
    assert list(bars) == ["dense"]


def test_unit_follows_the_size():
    assert unit_of(64.1e6) == (1e6, "M")
    assert unit_of(54.3e9) == (1e9, "G")
