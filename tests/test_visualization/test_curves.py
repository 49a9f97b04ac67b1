import json

import pytest

from smarttrim_mm.visualization.curves import draw_curves, read_curves, smooth


def write(work_dir, run: str, entries: list) -> None:
    folder = work_dir / run / "vis_data"
    folder.mkdir(parents=True)
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "scalars.json").write_text("\n".join(lines) + "\n")


def train(step: int, loss: float, **more) -> dict:
    return {"loss": loss, "loss_task": loss, "accuracy": 0.5, "speedup": 1.5, "step": step, **more}


def test_training_and_validation_are_told_apart(tmp_path):
    write(tmp_path, "20260101_000000", [train(10, 2.0), {"vqa/accuracy": 0.8, "compute/speedup": 1.9, "step": 10}])
    curves = read_curves(tmp_path)
    assert curves.train["loss"] == [(10, 2.0)]
    assert curves.train["accuracy"] == [(10, 0.5)]
    assert curves.val["accuracy"] == [(10, 0.8)]
    assert curves.val["speedup"] == [(10, 1.9)]


def test_a_resumed_run_continues_and_corrects_its_curve(tmp_path):
    write(tmp_path, "20260101_000000", [train(10, 2.0), train(20, 1.9), train(30, 1.8), '{"loss": 1.7, "st'])
    write(tmp_path, "20260101_010000", [train(30, 1.5), train(40, 1.4)])
    assert read_curves(tmp_path).train["loss"] == [(10, 2.0), (20, 1.9), (30, 1.5), (40, 1.4)]


def test_a_folder_without_scalars_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none: no \*/vis_data/scalars\.json"):
        read_curves(tmp_path / "none")


def test_smoothing_is_a_trailing_mean():
    points = [(1, 4.0), (2, 2.0), (3, 0.0), (4, 2.0)]
    assert smooth(points, 1) == points
    assert smooth(points, 2) == [(1, 4.0), (2, 3.0), (3, 1.0), (4, 1.0)]


def test_picture_has_a_column_a_run(tmp_path, pixels):
    write(tmp_path / "dense", "1", [train(i, 2.0 / i) for i in range(1, 50)])
    budget = [train(i, 1.0, loss_budget=0.1, loss_new=0.2, target=1 + i / 50) for i in range(1, 50)]
    write(tmp_path / "trim", "1", [*budget, {"vqa/accuracy": 0.8, "compute/speedup": 1.9, "step": 49}])
    runs = [("dense", read_curves(tmp_path / "dense")), ("trimmed", read_curves(tmp_path / "trim"))]
    two = pixels(draw_curves(runs, tmp_path / "new" / "two.png"))
    one = pixels(draw_curves(runs[:1], tmp_path / "one.png"))
    assert two.shape[1] > 1.6 * one.shape[1]
    assert len({tuple(color) for color in two[::4, ::4].reshape(-1, 3)}) > 10


def test_a_ratio_budget_is_not_drawn_as_a_speed_up(tmp_path, monkeypatch):
    write(tmp_path, "1", [train(i, 1.0, target=1 - i / 10) for i in range(1, 5)])
    labels = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda self, *args, label="", **kwargs: labels.append(label))
    draw_curves([("ratios", read_curves(tmp_path))], tmp_path / "picture.png")
    assert "budget target" not in labels
    assert "training batches (sampled gates)" in labels


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="runs is empty"):
        draw_curves([], tmp_path / "none.png")
