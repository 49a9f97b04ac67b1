"""Training curves: accuracy, losses, and the whole model's compute with the budget that pulls it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from smarttrim_mm.visualization.figures import save

_TRAIN, _VAL, _TARGET = "#7aa6d6", "#b42318", "#222222"
_LOSSES = {"loss_task": "#1f5fa8", "loss_distill": "#1a7f37", "loss_budget": "#b45f06", "loss_dense_task": "#7a3fa0"}
_OTHER_LOSSES = ("#5f5f5f", "#b58900", "#2aa198", "#d33682")


@dataclass(frozen=True)
class Curves:
    """Logged scalars of one training.

    Attributes:
        train: By name, (iteration, value) of the logged training iterations.
        val: Likewise of the validations, named without the metric's prefix.
    """

    train: Mapping[str, list[tuple[int, float]]]
    val: Mapping[str, list[tuple[int, float]]]


def read_curves(work_dir: str | Path) -> Curves:
    """Reads what mmengine's ``LocalVisBackend`` wrote, over all runs in a work dir: a resumed run continues its curve.

    Args:
        work_dir: Folder of a training.

    Raises:
        FileNotFoundError: If there is no ``scalars.json``.
    """
    files = sorted(Path(work_dir).glob("*/vis_data/scalars.json"))
    if not files:
        raise FileNotFoundError(
            f"{work_dir}: no */vis_data/scalars.json; give the work dir of a training with a LocalVisBackend"
        )
    train: dict[str, dict[int, float]] = {}
    val: dict[str, dict[int, float]] = {}
    for file in files:
        for entry in _entries(file):
            step = int(entry["step"])
            training = "loss" in entry
            for name, value in entry.items():
                if isinstance(value, int | float):
                    # a later run has the last word: what it repeats, an interrupted one had not saved
                    (train if training else val).setdefault(name if training else _bare(name), {})[step] = value
    return Curves(*({name: sorted(values.items()) for name, values in part.items()} for part in (train, val)))


def draw_curves(runs: Sequence[tuple[str, Curves]], path: str | Path) -> Path:
    """Draws :func:`curves_figure` into a PNG.

    Args:
        runs: Title and curves of each.
        path: The picture.

    Returns:
        The path.

    Raises:
        ValueError: If there are no runs.
    """
    return save(curves_figure(runs), path)


def curves_figure(runs: Sequence[tuple[str, Curves]]) -> Figure:
    """Trainings side by side: accuracy, losses, and compute.

    Args:
        runs: Title and curves of each.

    Raises:
        ValueError: If there are no runs.
    """
    if not runs:
        raise ValueError("runs is empty; expected the curves of at least one training")
    figure = Figure(figsize=(1.2 + 4.6 * len(runs), 7.6), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, len(runs), squeeze=False, sharex="col", sharey="row", height_ratios=(1.2, 1, 1))
    for column, (title, curves) in enumerate(runs):
        accuracy, losses, compute = panels[:, column]
        accuracy.set_title(title, fontsize=11, weight="bold")
        _draw_accuracy(accuracy, curves)
        _draw_losses(losses, curves)
        _draw_compute(compute, curves)
        compute.set_xlabel("iteration", fontsize=9)
        compute.set_xlim(left=0)
        compute.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for panel in panels.flat:
        panel.grid(color="#e2e2e2", linewidth=0.6)
        panel.tick_params(labelsize=8, labelleft=True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
    for panel, label in zip(
        panels[:, 0], ("accuracy", "loss", "whole-model speed-up,\ndense / decided multiply-adds"), strict=True
    ):
        panel.set_ylabel(label, fontsize=9)
    return figure


def smooth(points: Sequence[tuple[int, float]], window: int) -> list[tuple[int, float]]:
    """Mean of each point and the ``window - 1`` before it."""
    values = [value for _, value in points]
    means = [sum(part) / len(part) for part in (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))]
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


def _draw_accuracy(panel: Axes, curves: Curves) -> None:
    _line(panel, curves.train.get("accuracy", ()), color=_TRAIN, label="training batches")
    _line(panel, curves.val.get("accuracy", ()), color=_VAL, label="held-out training images", marker="o")


def _draw_losses(panel: Axes, curves: Curves) -> None:
    others = iter(_OTHER_LOSSES * 4)
    for name, points in curves.train.items():
        if name.startswith("loss_"):
            label = name.removeprefix("loss_").replace("_", " ")
            _line(panel, points, color=_LOSSES.get(name) or next(others), label=label)
    panel.set_ylim(bottom=0)


def _draw_compute(panel: Axes, curves: Curves) -> None:
    _line(panel, curves.train.get("speedup", ()), color=_TRAIN, label="training batches (sampled gates)")
    _line(panel, curves.val.get("speedup", ()), color=_VAL, label="held-out images (thresholds)", marker="o")
    # a budget on ratios logs kept shares, below 1; only a speed-up belongs on this axis
    target = [point for point in curves.train.get("target", ()) if point[1] >= 1]
    _line(panel, target, color=_TARGET, label="budget target", linestyle="--")


def _line(
    panel: Axes, points: Iterable[tuple[int, float]], *, color: str, label: str, marker: str = "", linestyle: str = "-"
) -> None:
    points = list(points)
    if not points:
        return
    window = 1 if marker or linestyle == "--" else max(1, len(points) // 40)
    steps, values = zip(*smooth(points, window), strict=True)
    marker = marker or ("." if len(points) == 1 else "")
    panel.plot(steps, values, color=color, label=label, marker=marker, markersize=4, linestyle=linestyle, linewidth=1.4)


def _entries(file: Path) -> list[dict]:
    entries = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed while it wrote
            continue
        if isinstance(entry, dict) and "step" in entry:
            entries.append(entry)
    return entries


def _bare(name: str) -> str:
    return name.rpartition("/")[2] if name.rpartition("/")[2] in ("accuracy", "speedup") else name
