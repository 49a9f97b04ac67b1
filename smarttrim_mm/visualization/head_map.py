"""Pictures of heads: which of them were kept, of which attention of which layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure

from smarttrim_mm.visualization.figures import INK, KEPT, OFF, SHARES, SOFT_INK, bare, new_figure, score_colours
from smarttrim_mm.visualization.keep_scores import add_colour_bar
from smarttrim_mm.visualization.traces import PairTrace

_HEAD, _LABEL, _THUMB, _BETWEEN = 1.15, 2.35, 0.9, 0.42  # inches
_WIDE, _TALL, _LEAST, _MOST = 8.0, 12.0, 0.085, 0.22  # inches: all cells of the picture, and one

_Row = tuple[PairTrace | None, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class HeadMap:
    """Values of the heads of one attention in all layers of a stage.

    Attributes:
        stage: The stage (``'fusion'``).
        attention: The attention (``'text.cross'``).
        layers: Indices of the layers, ascending, L.
        values: [H, L], NaN where a layer has no such head.
    """

    stage: str
    attention: str
    layers: tuple[int, ...]
    values: np.ndarray


def head_maps(heads: Mapping[str, np.ndarray]) -> list[HeadMap]:
    """Sorts values of heads by attention.

    Args:
        heads: By ``'<stage>.<layer>/<attention>'``, [H] each.

    Returns:
        A map for each attention of each stage, in the order of their first layers.
    """
    found: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for key, values in heads.items():
        step, _, attention = key.partition("/")
        stage, _, index = step.rpartition(".")
        found.setdefault((stage, attention), {})[int(index)] = values
    maps = []
    for (stage, attention), layers in found.items():
        grid = np.full((max(map(len, layers.values())), len(layers)), np.nan)
        for column, layer in enumerate(sorted(layers)):
            grid[: len(layers[layer]), column] = layers[layer]
        maps.append(HeadMap(stage, attention, tuple(sorted(layers)), grid))
    return maps


def heads_figure(
    traces: Sequence[PairTrace], shares: Mapping[str, np.ndarray] | None = None, inputs: int = 0, title: str = ""
) -> Figure:
    """Maps of heads by layers: how often each is kept over many inputs, and then which are kept for single ones.

    Args:
        traces: The single inputs.
        shares: By ``'<stage>.<layer>/<attention>'``, how often each head is kept, 0-1, [H]; None: that row is left out.
        inputs: Of so many inputs.
        title: Heading.

    Raises:
        ValueError: If no head was decided on.
    """
    rows: list[_Row] = [(trace, trace.heads) for trace in traces]
    if shares:
        rows.insert(0, (None, shares))
    _require(rows, "decides on no head")
    figure = _maps_figure(
        rows, title, "Columns are layers, rows are heads. Dark: the head runs; pale: it is left out.",
        lambda trace: (SHARES, Normalize(0, 1)) if trace is None else (ListedColormap([OFF, KEPT]), Normalize(0, 1)), inputs,
    )  # fmt: skip
    if shares:
        _share_bar(figure)
    return figure


def head_scores_figure(traces: Sequence[PairTrace], title: str = "") -> Figure:
    """Maps of heads by layers in the colours of the scores by which they were kept.

    Args:
        traces: The inputs.
        title: Heading.

    Raises:
        ValueError: If the policy gave no scores of heads.
    """
    rows: list[_Row] = [(trace, trace.scores.heads) for trace in traces]
    _require(rows, "has no scores of heads: overwrite Policy.scores to draw them")
    threshold = next(trace.scores.threshold for trace in traces if trace.scores.heads)
    every = np.concatenate([values.ravel() for _, heads in rows for values in heads.values()])
    colours, norm = score_colours(threshold, every)
    what = "Keep score" if threshold is None else "Keep probability"
    legend = f"{what} of each head. Columns are layers, rows are heads."
    figure = _maps_figure(rows, title, legend, lambda _: (colours, norm), 0)
    add_colour_bar(figure, colours, norm, threshold)
    return figure


def _require(rows: Sequence[_Row], otherwise: str) -> None:
    if not any(heads for _, heads in rows):
        raise ValueError(f"there are no heads to draw: the policy {otherwise}")


def _maps_figure(
    rows: Sequence[_Row],
    title: str,
    legend: str,
    colours_of: Callable[[PairTrace | None], tuple[Colormap, Normalize]],
    inputs: int,
) -> Figure:
    maps = [head_maps(heads) for _, heads in rows]
    first = next(each for each in maps if each)
    columns, tallest = sum(len(one.layers) for one in first), max(len(one.values) for one in first)
    cell = min(_MOST, max(_LEAST, min(_WIDE / columns, _TALL / (tallest * len(rows)))))
    widths = [max(len(one.layers) * cell, 0.62) for one in first]
    tall = max(tallest * cell, _THUMB)
    head, foot, gap = _HEAD, 0.3, 0.38
    width = max(_LABEL + sum(widths) + _BETWEEN * len(first) + 0.2, 6.0)
    height = head + len(rows) * (tall + gap) - gap + foot
    figure = new_figure(width, height)
    top = head
    for number, ((trace, _), row) in enumerate(zip(rows, maps, strict=True)):
        _label(figure, trace, inputs, top, tall)
        left = _LABEL
        for one, wide in zip(row, widths, strict=False):
            own = len(one.layers) * cell
            high = len(one.values) * cell
            panel = figure.add_axes((left / width, 1 - (top + high) / height, own / width, high / height))
            _draw_map(panel, one, colours_of(trace), cell)
            if number == 0:
                panel.set_title(_name(one), fontsize=8, pad=4, linespacing=1.1)
            left += wide + _BETWEEN
        top += tall + gap
    figure.text(0.15 / width, 1 - 0.25 / height, title, fontsize=11, weight="bold", va="center", parse_math=False)
    figure.text(0.15 / width, 1 - 0.5 / height, legend, fontsize=7, color=SOFT_INK, va="center")
    return figure


def _draw_map(panel: Axes, one: HeadMap, colours: tuple[Colormap, Normalize], cell: float) -> None:
    (heads, layers), (cmap, norm) = one.values.shape, colours
    panel.imshow(np.ma.masked_invalid(one.values), cmap=cmap, norm=norm, aspect="auto", interpolation="nearest")
    bare(panel)
    every = max(1, round(0.17 / cell))  # labels that do not touch
    shown = list(range(0, layers, every))
    panel.set_xticks(shown, [str(one.layers[i]) for i in shown])
    panel.set_yticks(range(0, heads, every), [str(i) for i in range(0, heads, every)])
    panel.tick_params(labelsize=6, length=0, pad=2, colors=SOFT_INK)
    for i in range(1, heads):
        panel.axhline(i - 0.5, color="white", linewidth=0.7)
    for i in range(1, layers):
        panel.axvline(i - 0.5, color="white", linewidth=0.7)


def _name(one: HeadMap) -> str:
    return f"{one.stage}\n{one.attention.removeprefix(f'{one.stage}.').replace('.', ' ')}"


def _label(figure: Figure, trace: PairTrace | None, inputs: int, top: float, tall: float) -> None:
    width, height = figure.get_size_inches()
    if trace is None:
        lines = f"how often kept,\nover {inputs:,} inputs"
        figure.text(0.15 / width, 1 - (top + 0.06) / height, lines, fontsize=8.5, weight="bold", va="top", color=INK)
        return
    scale = _THUMB / max(trace.pixels.shape[:2])
    high, wide = trace.pixels.shape[0] * scale, trace.pixels.shape[1] * scale
    panel = figure.add_axes((0.15 / width, 1 - (top + high) / height, wide / width, high / height))
    panel.imshow(trace.pixels, aspect="auto")
    bare(panel)
    on = sum(int(each.sum()) for each in trace.heads.values())
    of = sum(each.size for each in trace.heads.values())
    share = f"{trace.multiply_adds / trace.dense_multiply_adds:.2f} of the\ndense compute"
    figure.text(
        (0.25 + _THUMB) / width, 1 - (top + 0.02) / height, f"{on} of {of}\nheads kept\n\n{share}" if of else share,
        fontsize=7.5, va="top", color=INK,
    )  # fmt: skip


def _share_bar(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    panel = figure.add_axes((0.22 / width, 1 - (_HEAD + 0.56) / height, 1.5 / width, 0.09 / height))
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), SHARES), cax=panel, orientation="horizontal")
    bar.outline.set_linewidth(0.4)  # type: ignore[operator]
    bar.set_ticks([0.0, 0.5, 1.0])
    bar.set_ticklabels(["never", "half", "always"])
    panel.tick_params(labelsize=6, length=2, pad=1, colors=SOFT_INK)
