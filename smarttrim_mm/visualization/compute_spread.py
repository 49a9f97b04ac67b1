"""A picture of what a model spends on the inputs of a data set, with the cheapest and the dearest of them."""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from smarttrim_mm.visualization.figures import GREY, INK, KEPT, SOFT_INK, bare, new_figure
from smarttrim_mm.visualization.survey import Survey
from smarttrim_mm.visualization.traces import PairTrace

BINS = 52  # of the axis from 0 to 1.04
_TARGET = "#b45f06"
_PICTURE, _GAP, _LETTERS, _LINES = 1.25, 0.18, 25, 3  # inches, letters of a line under a picture, and lines


def compute_figure(
    survey: Survey, cheapest: Sequence[Sequence[PairTrace]], dearest: Sequence[Sequence[PairTrace]], title: str = ""
) -> Figure:
    """A histogram of multiply-adds as a share of dense, beside the inputs at its two ends.

    Args:
        survey: What inputs take.
        cheapest: The cheapest ones, with a trace for each image.
        dearest: The dearest ones, likewise.
        title: Heading.
    """
    rows = [row for row in (cheapest, dearest) if row]
    many = max(map(len, rows))
    below = 0.17 + 0.125 * _LINES
    head, chart = 0.75, 4.6
    width = 0.7 + chart + 0.45 + many * (_PICTURE + _GAP)
    height = head + 2 * (_PICTURE + below + 0.44)
    figure = new_figure(width, height)
    panel = figure.add_axes((0.7 / width, 0.55 / height, chart / width, (height - head - 0.75) / height))
    _draw_shares(panel, survey)
    names = ["least compute", "most compute"]
    top = head
    for name, row in zip(names, (cheapest, dearest), strict=True):
        for column, traces in enumerate(row):
            left = 0.7 + chart + 0.45 + column * (_PICTURE + _GAP)
            if column == 0:
                figure.text(left / width, 1 - (top - 0.02) / height, name, fontsize=9, weight="bold", va="center", color=INK)
            picture = figure.add_axes((left / width, 1 - (top + 0.3 + _PICTURE) / height, _PICTURE / width, _PICTURE / height))
            _draw_input(picture, traces)
        top += _PICTURE + below + 0.44
    figure.text(0.15 / width, 1 - 0.25 / height, title, fontsize=11, weight="bold", va="center", parse_math=False)
    return figure


def histogram(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of shares in bins of 0.02 from 0 on, as far as the greatest lies and at least to 1.04; and the bins' edges."""
    bins = max(BINS, int(np.floor(shares.max() / 0.02)) + 1)
    edges = 0.02 * np.arange(bins + 1)
    return np.histogram(shares, edges)[0], edges


def _draw_shares(panel: Axes, survey: Survey) -> None:
    counts, edges = histogram(survey.shares)
    panel.bar(edges[:-1], counts, width=0.0172, align="edge", color=KEPT)
    mean = 1 / survey.speedup
    panel.axvline(1.0, color=GREY, linewidth=0.9, linestyle=":")
    panel.axvline(mean, color=INK, linewidth=1.3, label=f"mean {mean:.2f} of dense, {survey.speedup:.2f}x")
    if survey.target is not None:
        name = f"target {1 / survey.target:.2f}, {survey.target:.2f}x"
        panel.axvline(1 / survey.target, color=_TARGET, linewidth=1.3, linestyle="--", label=name)
    panel.set_xlim(0, edges[-1])
    panel.set_ylim(0, 1.18 * max(counts.max(), 1))
    panel.set_xlabel("multiply-adds of an input as a share of the dense model's", fontsize=9)
    panel.set_ylabel(f"inputs, of {len(survey.pairs):,}", fontsize=9)
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    panel.tick_params(labelsize=8, colors=SOFT_INK)
    panel.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    ticks = [1.0, 1.25, 1.5, 2.0, 3.0, 5.0]
    faster = panel.secondary_xaxis("top")
    faster.set_xticks([1 / tick for tick in ticks], [f"{tick:g}x" for tick in ticks])
    faster.tick_params(labelsize=7, length=2, pad=1, colors=SOFT_INK)
    faster.spines["top"].set_visible(False)
    left = mean > 0.55
    panel.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="none", loc="upper left" if left else "upper right")


def _draw_input(panel: Axes, traces: Sequence[PairTrace]) -> None:
    gap = np.full((traces[0].pixels.shape[0], max(2, traces[0].pixels.shape[1] // 24), 3), 255, np.uint8)
    parts = [part for trace in traces for part in (gap, trace.pixels)][1:]
    panel.imshow(np.concatenate(parts, 1), interpolation="nearest", aspect="equal", extent=None)
    panel.set_anchor("N")
    bare(panel)
    trace = traces[0]
    share = trace.multiply_adds / trace.dense_multiply_adds
    panel.set_title(f"{share:.2f} of dense, {1 / share:.2f}x", fontsize=7.5, pad=3, color=INK)
    lines = wrap(" ".join(trace.words).replace(" ?", "?").replace(" ,", ",").replace(" .", "."), _LETTERS) or [trace.predicted]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1][: _LETTERS - 2] + " \u2026"]
    panel.set_xlabel("\n".join(lines), fontsize=7, labelpad=3, color=SOFT_INK, linespacing=1.15, parse_math=False)
