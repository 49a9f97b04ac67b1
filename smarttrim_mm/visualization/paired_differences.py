"""A picture of how much better or worse than the dense model each row of a comparison is, seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smarttrim_mm.visualization.figures import GREY, INK, SOFT_INK, new_figure
from smarttrim_mm.visualization.trade_off import style

_LINE, _HEAD, _FOOT = 0.27, 0.42, 0.72  # inches


@dataclass(frozen=True)
class Difference:
    """Accuracy of a row minus the dense model's, in points.

    Attributes:
        name: Its label.
        seeds: Of each seed that both have.
        error: Two standard errors of their mean, of drawing other questions; None: unknown.
        row: Number of its row, which sets its colour.
    """

    name: str
    seeds: tuple[float, ...]
    error: float | None
    row: int


def draw_differences(panels: Sequence[tuple[str, Sequence[Difference]]], *, accuracy: str, title: str) -> Figure:
    """A line each row: a small point each seed, a large one their mean, a bar of two standard errors.

    Seeds often differ more than policies do; what is drawn here is free of that, as a row is held against its own seed's model.

    Args:
        panels: Heading and rows of each budget.
        accuracy: What is compared, for the axis.
        title: Of the figure.
    """
    longest = max(len(each.name) for _, rows in panels for each in rows)
    left, chart = min(0.35 + 0.075 * longest, 3.4), 4.6
    width = left + chart + 0.25
    heights = [_LINE * len(rows) for _, rows in panels]
    height = 0.3 + sum(heights) + len(panels) * _HEAD + _FOOT
    figure = new_figure(width, height)
    figure.text(0.12 / width, 1 - 0.22 / height, title, fontsize=10.5, weight="bold", color=INK, va="center", parse_math=False)
    limits = _limits([each for _, rows in panels for each in rows])
    top = 0.3
    for number, ((heading, rows), size) in enumerate(zip(panels, heights, strict=True)):
        top += _HEAD
        panel = figure.add_axes((left / width, 1 - (top + size) / height, chart / width, size / height))
        _draw_panel(panel, rows, heading, limits)
        top += size
        if number < len(panels) - 1:
            panel.tick_params(axis="x", labelbottom=False)
        else:
            panel.set_xlabel(f"{accuracy} minus the dense model's of the same seed, points", fontsize=8.5, color=INK)
    note = "large: mean, bar: ± 2 standard errors of drawing other questions, small: a seed"
    figure.text(left / width, 0.1 / height, note, fontsize=7, color=SOFT_INK)
    return figure


def _limits(rows: Sequence[Difference]) -> tuple[float, float]:
    """Of the horizontal axis, with zero inside."""
    ends = [0.0]
    for each in rows:
        mean, error = float(np.mean(each.seeds)), each.error or 0.0
        ends += [*each.seeds, mean - error, mean + error]
    margin = 0.06 * max(max(ends) - min(ends), 0.1)
    return min(ends) - margin, max(ends) + margin


def _draw_panel(panel: Axes, rows: Sequence[Difference], heading: str, limits: tuple[float, float]) -> None:
    panel.axvline(0.0, color=GREY, linewidth=0.9, linestyle=":")
    for place, each in enumerate(reversed(rows)):
        colour, marker = style(each.row, False)
        mean = float(np.mean(each.seeds))
        if each.error is not None:
            panel.errorbar(mean, place, xerr=each.error, color=colour, linewidth=1.4, capsize=2.2, zorder=2)
        if len(each.seeds) > 1:
            panel.plot(each.seeds, [place] * len(each.seeds), marker, markersize=3.0, color=colour, alpha=0.45, zorder=3)
        panel.plot(mean, place, marker, markersize=6.5, color=colour, markeredgecolor="white", markeredgewidth=0.6, zorder=4)
    panel.set_yticks(range(len(rows)), [each.name for each in reversed(rows)], fontsize=8)
    for text in panel.get_yticklabels():
        text.set_parse_math(False)
    panel.set_xlim(*limits)
    panel.set_ylim(-0.6, len(rows) - 0.4)
    panel.set_title(heading, fontsize=9, color=INK, loc="left", parse_math=False)
    panel.tick_params(axis="y", length=0, colors=INK)
    panel.tick_params(axis="x", labelsize=8, colors=SOFT_INK)
    panel.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
