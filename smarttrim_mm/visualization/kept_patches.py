"""Pictures of what was pruned: images with their dropped patches greyed layer by layer, beside the question."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from smarttrim_mm.visualization.traces import PairTrace

MAX_COLUMNS = 9  # layers drawn of a deep model
MAX_LINES = 6  # lines of a question
_WORD_SIZES = (8, 7, 6, 5)
_PANEL, _TEXT_PANEL = 1.15, 3.9  # inches
_GREY, _RIGHT, _WRONG, _UNKNOWN = "#9a9a9a", "#1a7f37", "#b42318", "#333333"
_LEGEND = "Grey patches and struck words are left out from that layer on; the class token and the text's ends always stay."
_MILLION = 1e6


def draw_kept(traces: Sequence[PairTrace], path: str | Path, title: str = "") -> Path:
    """Draws one row a pair: the question with its dropped words struck, the image, and the image at each layer.

    Args:
        traces: The pairs, of one model.
        path: The picture, a PNG.
        title: Heading.

    Returns:
        The path.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not traces:
        raise ValueError("traces is empty; expected at least one image-question pair to draw")
    steps = evenly(list(traces[0].patches), MAX_COLUMNS)
    widths = [_TEXT_PANEL] + [_PANEL] * (len(steps) + 1)
    size = (sum(widths) + 0.3, 1.42 * len(traces) + 1.0)
    figure = Figure(figsize=size, dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(traces), len(widths), width_ratios=widths, left=0.015, right=0.99, wspace=0.08, hspace=0.22,
        top=1 - 0.78 / size[1], bottom=0.22 / size[1],
    )  # fmt: skip
    for row, trace in enumerate(traces):
        panels = [figure.add_subplot(grid[row, column]) for column in range(len(widths))]
        _draw_question(panels[0], trace)
        _draw_image(panels[1], trace.pixels, None)
        for panel, step in zip(panels[2:], steps, strict=True):
            _draw_image(panel, trace.pixels, trace.patches[step])
        if row == 0:
            for panel, name in zip(panels[1:], ["input", *map(layer_name, steps)], strict=True):
                panel.set_title(name, fontsize=9, pad=5)
    figure.text(0.015, 1 - 0.25 / size[1], title, fontsize=11, weight="bold", va="center")
    figure.text(0.015, 1 - 0.47 / size[1], _LEGEND, fontsize=7, color="#333333", va="center")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return Path(path)


def greyed(pixels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Fades the patches that are not kept to a pale grey.

    Args:
        pixels: RGB uint8 [height, width, 3].
        kept: bool [rows, columns]; rows and columns divide height and width.

    Returns:
        RGB uint8 [height, width, 3].
    """
    height, width = pixels.shape[0] // kept.shape[0], pixels.shape[1] // kept.shape[1]
    mask = kept.repeat(height, 0).repeat(width, 1)[..., None]
    grey = pixels.astype(float).mean(-1, keepdims=True)
    return np.where(mask, pixels, 0.12 * grey + 0.88 * 205).round().astype(np.uint8)


def question_lines(kept_words: Mapping[str, np.ndarray], limit: int = MAX_LINES) -> list[tuple[str, np.ndarray]]:
    """Groups consecutive layers that keep the same words.

    Args:
        kept_words: Per step, bool [W].
        limit: Most lines; with more, the layers are thinned evenly.

    Returns:
        Names of the layers (``'text 0-1'``) and what they keep.
    """
    lines = []
    for _, run in groupby(kept_words.items(), key=lambda entry: (_split(entry[0])[0], entry[1].tobytes())):
        entries = list(run)
        names = [name for name, _ in entries]
        first, last = layer_name(names[0]), _split(names[-1])[1]
        lines.append((first if len(names) == 1 else f"{first}-{last}", entries[0][1]))
    return evenly(lines, limit)


def evenly(values: list, limit: int) -> list:
    """At most so many of the values, evenly spaced, the first and the last among them."""
    if len(values) <= limit:
        return values
    return [values[round(i * (len(values) - 1) / (limit - 1))] for i in range(limit)]


def layer_name(step: str) -> str:
    """``'image.3'`` as ``'image 3'``."""
    return " ".join(_split(step))


def _split(step: str) -> tuple[str, str]:
    stage, _, index = step.rpartition(".")
    return stage, index


def _draw_image(panel: Axes, pixels: np.ndarray, kept: np.ndarray | None) -> None:
    panel.imshow(pixels if kept is None else greyed(pixels, kept), interpolation="nearest", aspect="equal")
    panel.set_xticks([])
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set(color="#555555", linewidth=0.6)
    if kept is None:
        return
    height, width = pixels.shape[0] / kept.shape[0], pixels.shape[1] / kept.shape[1]
    if max(kept.shape) <= 16:
        for i in range(1, kept.shape[0]):
            panel.axhline(i * height - 0.5, color="white", linewidth=0.3, alpha=0.7)
        for i in range(1, kept.shape[1]):
            panel.axvline(i * width - 0.5, color="white", linewidth=0.3, alpha=0.7)
    panel.set_xlabel(f"{int(kept.sum())} of {kept.size}", fontsize=7, labelpad=2, color="#333333")


def _draw_question(panel: Axes, trace: PairTrace) -> None:
    panel.axis("off")
    lines = question_lines(trace.kept_words)
    height = 1 / (max(len(lines), 3) + 2.2)  # of the panel, per line
    y = 1 - 0.5 * height
    wrong = trace.answer not in (None, trace.predicted)
    text = f"answer: {trace.predicted}" + (f"   (right: {trace.answer})" if wrong else "")
    color = _UNKNOWN if trace.answer is None else _WRONG if wrong else _RIGHT
    panel.text(0, y, text, fontsize=9, weight="bold", color=color, va="center")
    y -= 1.15 * height
    for name, kept in lines:
        panel.text(0, y, name, fontsize=7, color="#333333", va="center")
        _draw_words(panel, 0.2, y, trace.words, kept)
        y -= height
    ratio = trace.dense_multiply_adds / trace.multiply_adds
    spent = (
        f"{trace.multiply_adds / _MILLION:.1f} of {trace.dense_multiply_adds / _MILLION:.1f} M multiply-adds  ({ratio:.2f}x)"
    )
    panel.text(0, y - 0.1 * height, spent, fontsize=8, va="center")


def _draw_words(panel: Axes, x: float, y: float, words: Sequence[str], kept: np.ndarray) -> None:
    """Writes words one after the other, dropped ones grey and struck; smaller if they would leave the panel, at last cut."""
    canvas = panel.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()
    to_axes = panel.transAxes.inverted()
    space = 0.012
    for fontsize in _WORD_SIZES:
        texts, at = [], x
        for word, stays in zip(words, kept, strict=True):
            text = panel.text(at, y, word, fontsize=fontsize, va="center", color="black" if stays else _GREY)
            box = text.get_window_extent(renderer).transformed(to_axes)
            texts.append((text, box, stays))
            at = box.x1 + space
        if at - space <= 1.0 or fontsize == _WORD_SIZES[-1]:
            break
        for text, *_ in texts:
            text.remove()
    fitting = [entry for entry in texts if entry[1].x1 <= (1.0 if at - space <= 1.0 else 1.0 - 2 * space)]
    for text, *_ in texts[len(fitting) :]:
        text.remove()
    if len(fitting) < len(texts):
        panel.text(1.0, y, "\u2026", fontsize=_WORD_SIZES[-1], va="center", ha="right", color=_GREY)
    for _, box, stays in fitting:
        if not stays:
            panel.add_line(Line2D([box.x0, box.x1], [y, y], color=_GREY, linewidth=0.9, transform=panel.transAxes))
