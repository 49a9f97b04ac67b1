"""A picture of how much compute each input keeps, row by row of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smarttrim_mm.visualization.figures import GREY, INK, SOFT_INK, new_figure
from smarttrim_mm.visualization.trade_off import style

_BINS = 60
_STRIP, _HEAD, _FOOT, _BETWEEN = 0.34, 0.45, 0.62, 0.1  # inches
_MOST = 1.08  # of dense


@dataclass(frozen=True)
class Strip:
    """What the inputs of one row, or of one group of them, keep.

    Attributes:
        name: Its label.
        shares: Multiply-adds of each input over the dense model's.
        row: Number of its row, which sets its colour.
        group: Number of its group among ``groups``; None: it is a whole row.
        groups: How many there are.
    """

    name: str
    shares: np.ndarray
    row: int
    group: int | None = None
    groups: int = 1


def draw_kept_compute(panels: Sequence[tuple[str, Sequence[Strip]]], title: str) -> Figure:
    """A strip each row: the distribution over inputs, with its median, its middle half and its 5th and 95th percentiles.

    Args:
        panels: Heading and strips of each budget.
        title: Of the figure.
    """
    longest = max(len(strip.name) for _, strips in panels for strip in strips)
    left, chart = min(0.35 + 0.075 * longest, 3.4), 4.6
    width = left + chart + 0.25
    heights = [_STRIP * len(strips) for _, strips in panels]
    height = 0.35 + sum(heights) + len(panels) * (_HEAD + _BETWEEN) + _FOOT
    figure = new_figure(width, height)
    figure.text(0.12 / width, 1 - 0.22 / height, title, fontsize=10.5, weight="bold", color=INK, va="center", parse_math=False)
    top = 0.35
    for number, ((heading, strips), size) in enumerate(zip(panels, heights, strict=True)):
        top += _HEAD
        panel = figure.add_axes((left / width, 1 - (top + size) / height, chart / width, size / height))
        _draw_panel(panel, strips, heading, last=number == len(panels) - 1)
        top += size + _BETWEEN
    return figure


def _draw_panel(panel: Axes, strips: Sequence[Strip], heading: str, last: bool) -> None:
    edges = np.linspace(0, _MOST, _BINS + 1)
    for place, strip in enumerate(reversed(strips)):
        colour = style(strip.row, False)[0] if strip.group is None else _group_colour(strip)
        counts, _ = np.histogram(np.clip(strip.shares, 0, _MOST), edges)
        tops = place + 0.78 * counts / max(counts.max(), 1)
        panel.fill_between(edges, np.append(tops, place), place, step="post", color=colour, alpha=0.35, linewidth=0)
        low, first, middle, third, high = np.percentile(strip.shares, [5, 25, 50, 75, 95])
        panel.plot([low, high], [place + 0.04] * 2, color=colour, linewidth=1.0, solid_capstyle="butt")
        panel.plot([first, third], [place + 0.04] * 2, color=colour, linewidth=3.0, solid_capstyle="butt")
        panel.plot(middle, place + 0.04, marker="o", markersize=4.2, color="white", markeredgecolor=colour, markeredgewidth=1.2)
    panel.set_yticks([place + 0.25 for place in range(len(strips))], [strip.name for strip in reversed(strips)], fontsize=8)
    for text in panel.get_yticklabels():
        text.set_parse_math(False)
    panel.axvline(1.0, color=GREY, linewidth=0.9, linestyle=":")
    panel.set_xlim(0, _MOST)
    panel.set_ylim(-0.12, len(strips))
    panel.set_title(heading, fontsize=9, color=INK, loc="left", parse_math=False)
    panel.tick_params(axis="y", length=0, colors=INK)
    panel.tick_params(axis="x", labelsize=8, colors=SOFT_INK, labelbottom=last)
    panel.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    if last:
        panel.set_xlabel(
            "multiply-adds of an input as a share of the dense model's on it\n"
            "dot: median, thick: middle half, thin: 5th to 95th percentile; all seeds together",
            fontsize=8,
        )


def _group_colour(strip: Strip) -> tuple[float, ...]:
    assert strip.group is not None
    return colormaps["viridis"](0.85 * strip.group / max(strip.groups - 1, 1))
