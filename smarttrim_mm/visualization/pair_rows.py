"""Rows of a picture: a pair's text, its image, and the image at each layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from smarttrim_mm.visualization.figures import GREY, INK, SOFT_INK, bare, new_figure, renderer_of
from smarttrim_mm.visualization.traces import PairTrace

MAX_COLUMNS = 9  # layers drawn of a deep model
MAX_LINES = 6  # layers that a question's words are written for
_LEAST_LINES, _WRAPPED_LINES, _MAX_WRAPPED = 2, 10, 4
_PANEL, _TEXT_PANEL, _NAME, _GAP = 1.15, 3.9, 0.82, 0.28  # inches
_LINE, _WORD_SIZE = 0.155, 8  # inches, points
_RIGHT, _WRONG = "#1a7f37", "#b42318"


@dataclass(frozen=True)
class WordStyle:
    """How a word is written.

    Attributes:
        colour: Of its letters.
        struck: Whether it is struck through.
        background: Colour behind it; None: none.
    """

    colour: str = INK
    struck: bool = False
    background: tuple[float, ...] | None = None


@dataclass(frozen=True)
class RowStyle:
    """What a picture of rows shows.

    Attributes:
        words: Of a trace, what is to be said of its words, [W] per step.
        word: How a word of that value is written.
        patches: The image at a step, RGB uint8, and the line under it; None: nothing is known of that step.
        grid: Patches along the height and width at a step, for the lines between them.
    """

    words: Callable[[PairTrace], Mapping[str, np.ndarray]]
    word: Callable[[float], WordStyle]
    patches: Callable[[PairTrace, str], tuple[np.ndarray, str] | None]
    grid: Callable[[PairTrace, str], tuple[int, ...]]


def pair_rows(traces: Sequence[PairTrace], steps: Sequence[str], style: RowStyle, title: str, legend: str) -> Figure:
    """One row a pair: the text, the image, and the image at each step.

    Args:
        traces: The pairs.
        steps: The steps that images are drawn of; with many, some are left out evenly.
        style: What is shown.
        title: Heading.
        legend: A line below it.
    """
    steps = evenly(list(steps), MAX_COLUMNS)
    probe = new_figure(1, 1)
    texts = [_text_of(trace, style.words(trace), probe) for trace in traces]
    shapes = [trace.pixels.shape for trace in traces]
    heights = [max(_PANEL * shape[0] / shape[1] + 0.2, text.height) for shape, text in zip(shapes, texts, strict=True)]
    head, foot = 0.9, 0.12
    width = 0.15 + _TEXT_PANEL + (len(steps) + 1) * (_PANEL + 0.09) + 0.1
    height = head + sum(heights) + _GAP * (len(traces) - 1) + foot
    figure = new_figure(width, height)

    def panel_at(left: float, top: float, w: float, h: float) -> Axes:
        return figure.add_axes((left / width, 1 - (top + h) / height, w / width, h / height))

    top = head
    for number, (trace, text, row) in enumerate(zip(traces, texts, heights, strict=True)):
        _write_text(panel_at(0.15, top, _TEXT_PANEL, row), trace, text, style, row)
        tall = _PANEL * trace.pixels.shape[0] / trace.pixels.shape[1]
        for column, step in enumerate([None, *steps]):
            panel = panel_at(0.15 + _TEXT_PANEL + column * (_PANEL + 0.09), top, _PANEL, tall)
            if number == 0:
                panel.set_title("input" if step is None else layer_name(step), fontsize=9, pad=5)
            _draw_image(panel, trace, step, style)
        top += row + _GAP
    figure.text(0.15 / width, 1 - 0.25 / height, title, fontsize=11, weight="bold", va="center", parse_math=False)
    figure.text(0.15 / width, 1 - 0.47 / height, legend, fontsize=7, color=SOFT_INK, va="center")
    return figure


def question_lines(values: Mapping[str, np.ndarray], limit: int = MAX_LINES) -> list[tuple[str, np.ndarray]]:
    """Groups consecutive layers of which the same is said.

    Args:
        values: Per step, [W].
        limit: Most lines; with more, the layers are thinned evenly.

    Returns:
        Names of the layers (``'text 0-1'``) and their values.
    """
    lines = []
    for _, run in groupby(values.items(), key=lambda entry: (_split(entry[0])[0], entry[1].tobytes())):
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


def spent(trace: PairTrace) -> str:
    """What a pair takes of the dense compute, in words."""
    unit, letter = (1e9, "G") if trace.dense_multiply_adds >= 1e9 else (1e6, "M")
    dense, ratio = trace.dense_multiply_adds / unit, trace.dense_multiply_adds / trace.multiply_adds
    return f"{trace.multiply_adds / unit:.1f} of {dense:.1f} {letter} multiply-adds  ({ratio:.2f}x)"


def wrap(widths: Sequence[float], space: float, width: float, limit: int) -> tuple[list[list[int]], bool]:
    """Breaks words into lines.

    Args:
        widths: Of each word.
        space: Between two words.
        width: Of a line.
        limit: Most lines.

    Returns:
        The words' numbers line by line, and whether some were left out at the end; there is room for a mark then.
    """
    lines: list[list[int]] = [[]]
    at = 0.0
    for number, own in enumerate(widths):
        if lines[-1] and at + own > width:
            if len(lines) == limit:
                while lines[-1] and at > width - 2 * space:
                    at -= widths[lines[-1].pop()] + space
                return lines, True
            lines.append([])
            at = 0.0
        lines[-1].append(number)
        at += own + space
    return lines, False


@dataclass(frozen=True)
class _Text:
    answer: tuple[str, ...]  # lines
    lines: tuple[tuple[str, np.ndarray | None], ...]
    wrapped: tuple[tuple[int, ...], ...]  # words of each line of the question
    widths: tuple[float, ...]  # inches
    space: float
    indent: float
    cut: bool
    height: float


def _text_of(trace: PairTrace, words: Mapping[str, np.ndarray], probe: Figure) -> _Text:
    font = FontProperties(size=_WORD_SIZE)
    widths = [_width(probe, word, font) for word in trace.words]
    space, indent = 0.045, _NAME if words else 0.0
    wrapped, cut = wrap(widths, space, _TEXT_PANEL - indent - 0.15, _MAX_WRAPPED)
    limit = min(MAX_LINES, max(_LEAST_LINES, _WRAPPED_LINES // len(wrapped)))
    lines: list[tuple[str, np.ndarray | None]] = [*question_lines(words, limit)]
    if trace.words and not lines:
        lines = [("", None)]
    wrong = trace.answer not in (None, trace.predicted)
    answer = f"answer: {trace.predicted}" + (f"   (right: {trace.answer})" if wrong else "")
    parts = answer.split(" ")
    bold = FontProperties(size=9, weight="bold")
    rows, left_out = wrap([_width(probe, part, bold) for part in parts], 0.05, _TEXT_PANEL - 0.15, 3)
    shown = [" ".join(parts[i] for i in row) for row in rows]
    if left_out:
        shown[-1] += " \u2026"
    height = _LINE * (1.15 * len(shown) + len(wrapped) * len(lines) + 1.3) + 0.03 * len(lines)
    return _Text(tuple(shown), tuple(lines), tuple(map(tuple, wrapped)), tuple(widths), space, indent, cut, height)


def _width(figure: Figure, text: str, font: FontProperties) -> float:
    """Width of a text, in inches."""
    return renderer_of(figure).get_text_width_height_descent(text, font, False)[0] / figure.dpi


def _write_text(panel: Axes, trace: PairTrace, text: _Text, style: RowStyle, height: float) -> None:
    panel.set_xlim(0, _TEXT_PANEL)
    panel.set_ylim(height, 0)
    panel.axis("off")
    y = 0.6 * _LINE
    wrong = trace.answer not in (None, trace.predicted)
    colour = INK if trace.answer is None else _WRONG if wrong else _RIGHT
    for line in text.answer:
        panel.text(0, y, line, fontsize=9, weight="bold", color=colour, va="center", parse_math=False)
        y += 1.15 * _LINE
    for name, values in text.lines:
        panel.text(0, y, name, fontsize=7, color=SOFT_INK, va="center")
        for number, row in enumerate(text.wrapped):
            _write_words(panel, y, trace.words, values, row, text, style)
            if text.cut and number == len(text.wrapped) - 1:
                end = text.indent + sum(text.widths[i] + text.space for i in row)
                panel.text(end, y, "\u2026", fontsize=_WORD_SIZE, va="center", color=GREY)
            y += _LINE
        y += 0.03
    panel.text(0, y + 0.1 * _LINE, spent(trace), fontsize=8, va="center", color=INK)


def _write_words(
    panel: Axes,
    y: float,
    words: Sequence[str],
    values: np.ndarray | None,
    row: Sequence[int],
    text: _Text,
    style: RowStyle,
) -> None:
    x = text.indent
    for number in row:
        how = WordStyle() if values is None else style.word(values[number])
        box = None if how.background is None else {"facecolor": how.background, "edgecolor": "none", "pad": 0.9}
        panel.text(x, y, words[number], fontsize=_WORD_SIZE, va="center", color=how.colour, bbox=box, parse_math=False)
        end = x + text.widths[number]
        if how.struck:
            panel.add_line(Line2D([x, end], [y, y], color=how.colour, linewidth=0.9))
        x = end + text.space


def _draw_image(panel: Axes, trace: PairTrace, step: str | None, style: RowStyle) -> None:
    shown = (trace.pixels, "") if step is None else style.patches(trace, step)
    if shown is None:
        panel.axis("off")
        return
    pixels, line = shown
    panel.imshow(pixels, interpolation="nearest", aspect="equal")
    bare(panel)
    if step is None:
        return
    rows, columns = style.grid(trace, step)
    if max(rows, columns) <= 16:
        for i in range(1, rows):
            panel.axhline(i * pixels.shape[0] / rows - 0.5, color="white", linewidth=0.3, alpha=0.7)
        for i in range(1, columns):
            panel.axvline(i * pixels.shape[1] / columns - 0.5, color="white", linewidth=0.3, alpha=0.7)
    panel.set_xlabel(line, fontsize=7, labelpad=2, color=SOFT_INK)


def _split(step: str) -> tuple[str, str]:
    stage, _, index = step.rpartition(".")
    return stage, index
