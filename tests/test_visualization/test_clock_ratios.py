from matplotlib.axes import Axes

from smarttrim_mm.visualization.clock_ratios import draw_clocks
from smarttrim_mm.visualization.figures import save


def row(ratio, multiply_adds):
    spread = {"median": ratio, "q1": ratio - 0.1, "q3": ratio + 0.2}
    return {"dense_over_decided": multiply_adds, "speedup": {**spread, "median": 9.0}, "speedup_over_sdpa": spread}


def test_a_point_for_each_row_with_a_known_compute(tmp_path, pixels, monkeypatch):
    drawn = []
    errorbar = Axes.errorbar

    def keep(self, x, y, **kwargs):
        drawn.append((x, y, kwargs["fmt"], tuple(kwargs["color"]), kwargs["yerr"]))
        return errorbar(self, x, y, **kwargs)

    monkeypatch.setattr(Axes, "errorbar", keep)
    rows = {"host": row(1.0, 1.0), "A at 2x": row(1.8, 2.0), "A at 3x": row(2.4, 3.0), "unknown": row(1.0, None)}
    results = [{"batch_size": size, "threads": 1, "sdpa_baseline": "host, SDPA", "contenders": rows} for size in (1, 8)]
    figure = draw_clocks({"model": "METER", "dtype": "bf16", "results": results})
    assert [point[:2] for point in drawn] == 2 * [(1.0, 1.0), (2.0, 1.8), (3.0, 2.4)]
    (_, first, second, other_size, *_) = drawn
    assert first[2] == second[2] != drawn[0][2]  # a policy has one marker
    assert first[3] == second[3] != other_size[3]  # a size has one colour
    assert [round(part[0], 3) for part in first[4]] == [0.1, 0.2]
    assert len({tuple(colour) for colour in pixels(save(figure, tmp_path / "clocks.png"))[::4, ::4].reshape(-1, 3)}) > 5
