"""Matplotlib figures without a window: made, turned into pixels, saved; and the colours that all pictures share."""

import io
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import Colormap, FuncNorm, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from smarttrim_mm.utils.checkpoint_io import write_atomically

INK, SOFT_INK, GREY = "#222222", "#555555", "#9a9a9a"
KEPT, OFF = "#1f5fa8", "#e8edf3"
SHARES = LinearSegmentedColormap.from_list("shares", [OFF, "#7aa6d6", KEPT, "#0b2f5c"])  # from never to always


def new_figure(width: float, height: float) -> Figure:
    """A white figure, sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def renderer_of(figure: Figure) -> RendererAgg:
    """Measures texts."""
    assert isinstance(figure.canvas, FigureCanvasAgg)
    return figure.canvas.get_renderer()


def render(figure: Figure) -> np.ndarray:
    """The figure's pixels, RGB uint8 [height, width, 3]."""
    assert isinstance(figure.canvas, FigureCanvasAgg)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | Path) -> Path:
    """Writes the figure, a PNG, whole or not at all; returns the path."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())
    return Path(path)


def score_colours(threshold: float | None, values: np.ndarray) -> tuple[Colormap, Normalize]:
    """Colours of scores: red below the threshold, blue above; without a threshold from the least score to the greatest.

    Near the threshold colours change fast, as that is where decisions lie.

    Args:
        threshold: Of probabilities, in (0, 1), or None.
        values: The scores; NaN are left out.
    """
    if threshold is not None:
        return colormaps["RdBu"], FuncNorm((lambda s: _spread(s, threshold), lambda c: _gathered(c, threshold)), 0.0, 1.0)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return colormaps["viridis"], Normalize(low, high if high > low else low + 1.0)


def _spread(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Probabilities to 0-1: the threshold is 0.5, and from there it goes by the root of the distance."""
    side = np.where(scores < threshold, threshold, 1 - threshold)
    distance = np.clip((scores - threshold) / side, -1, 1)
    return 0.5 + 0.5 * np.sign(distance) * np.sqrt(np.abs(distance))


def _gathered(colours: np.ndarray, threshold: float) -> np.ndarray:
    """The inverse of :func:`_spread`."""
    distance = 2 * np.asarray(colours) - 1
    side = np.where(distance < 0, threshold, 1 - threshold)
    return threshold + side * np.sign(distance) * distance**2


def bare(panel: Axes, colour: str = SOFT_INK) -> None:
    """No ticks, thin edges."""
    panel.set_xticks([])
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set(color=colour, linewidth=0.6)
