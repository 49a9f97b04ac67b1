"""A picture of accuracy against cost: what each row of a comparison pays, and what nobody beats."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smarttrim_mm.visualization.figures import INK, SOFT_INK, new_figure

# Okabe and Ito's colours, which people tell apart whatever their colour vision; black is the dense model's
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6bb1")
MARKERS = "osD^vP*X<>hp"
_FRONT = "#444444"


@dataclass(frozen=True)
class Point:
    """A row at one budget.

    Attributes:
        cost: Of each seed.
        accuracy: Of each seed, 0-1.
        on_front: Whether it lies on the Pareto front.
    """

    cost: tuple[float, ...]
    accuracy: tuple[float, ...]
    on_front: bool = False

    @property
    def mean(self) -> tuple[float, float]:
        return float(np.mean(self.cost)), float(np.mean(self.accuracy))


@dataclass(frozen=True)
class Series:
    """A row of a comparison.

    Attributes:
        name: Its label.
        points: One a budget.
        dense: Whether it is the dense model.
    """

    name: str
    points: tuple[Point, ...]
    dense: bool = False


def draw_trade_off(series: Sequence[Series], *, cost: str, accuracy: str, title: str) -> Figure:
    """Accuracy against cost: a small point each seed, a large one the mean, bars one standard deviation of either.

    Args:
        series: The rows, each with at least one point.
        cost: Label of the horizontal axis.
        accuracy: Label of the vertical axis.
        title: Heading.
    """
    longest = max(len(each.name) for each in series)
    width, labels = 7.4, min(0.4 + 0.064 * longest, 3.0)
    figure = new_figure(width, 4.6)
    panel = figure.add_axes((0.75 / width, 0.68 / 4.6, (width - 0.95 - labels) / width, 3.5 / 4.6))
    front = sorted(point.mean for each in series for point in each.points if point.on_front)
    if front:
        panel.plot(*zip(*front, strict=True), color=_FRONT, linewidth=1.2, linestyle="--", zorder=1)
    for number, each in enumerate(series):
        _draw_series(panel, each, *style(number, each.dense))
    panel.margins(0.08)
    panel.set_xlim(panel.get_xlim())  # labels are placed by where the limits are
    panel.set_ylim(panel.get_ylim())
    panel.set_xlabel(cost, fontsize=9)
    panel.set_ylabel(accuracy, fontsize=9)
    panel.set_title(title, fontsize=10.5, weight="bold", color=INK, loc="left", parse_math=False)
    panel.tick_params(labelsize=8, colors=SOFT_INK)
    panel.grid(color="#e6e6e6", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    _label(panel, series, line=0.17 / 3.5)
    note = "large: mean over seeds, bars: ± 1 standard deviation, small: a seed"
    figure.text(
        0.75 / width, 0.08 / 4.6, note + (", dashed: Pareto front (ringed)" if front else ""), fontsize=7, color=SOFT_INK
    )
    return figure


def style(number: int, dense: bool) -> tuple[str, str]:
    """Colour and marker of a series: colours repeat later than markers do, so that no two look alike."""
    return (INK if dense else COLOURS[number % len(COLOURS)]), MARKERS[number % len(MARKERS)]


def spread_labels(heights: Sequence[float], least: float) -> list[float]:
    """Moves heights (0-1) apart so that no two are nearer than ``least``, in their order and as little as is simple.

    Args:
        heights: Where the labels would be.
        least: Distance that they need.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [0.0] * len(heights)
    below = -np.inf
    for i in order:
        placed[i] = below = max(heights[i], below + least)
    over = max(0.0, max(placed) - 1.0) if placed else 0.0
    above = np.inf
    for i in reversed(order):  # what was pushed out at the top comes back, and pushes those below it
        placed[i] = above = min(placed[i], 1.0 if over else np.inf, above - least)
    return placed


def _draw_series(panel: Axes, series: Series, colour: str, marker: str) -> None:
    means = sorted(point.mean for point in series.points)
    panel.plot(*zip(*means, strict=True), color=colour, linewidth=1.0, alpha=0.6, zorder=2)
    for point in series.points:
        x, y = point.mean
        if len(point.cost) > 1:
            panel.plot(point.cost, point.accuracy, marker, markersize=2.6, color=colour, alpha=0.5, zorder=3)
            deviation_x, deviation_y = np.std(point.cost, ddof=1), np.std(point.accuracy, ddof=1)
            panel.errorbar(x, y, deviation_y, deviation_x, color=colour, linewidth=0.9, capsize=1.8, zorder=3)
        panel.plot(x, y, marker=marker, markersize=6.5, color=colour, markeredgecolor="white", markeredgewidth=0.6, zorder=4)
        if point.on_front:
            panel.plot(x, y, marker="o", markersize=11, markerfacecolor="none", markeredgecolor=_FRONT, markeredgewidth=0.9)


def _label(panel: Axes, series: Sequence[Series], line: float) -> None:
    """A name at the right of the panel for each series, with a thin line from its rightmost point."""
    ends = [max(point.mean for point in each.points) for each in series]
    inside = [panel.transAxes.inverted().transform(panel.transData.transform(end)) for end in ends]
    heights = spread_labels([float(y) for _, y in inside], line)
    for number, (each, (x, y), height) in enumerate(zip(series, inside, heights, strict=True)):
        colour = style(number, each.dense)[0]
        panel.plot(
            [x, 1.0, 1.03], [y, height, height], transform=panel.transAxes, color=colour, linewidth=0.5, alpha=0.7,
            clip_on=False, zorder=1,
        )  # fmt: skip
        panel.text(
            1.04, height, each.name, transform=panel.transAxes, fontsize=8, color=colour, va="center", parse_math=False,
            weight="bold" if each.dense else "normal",
        )  # fmt: skip
