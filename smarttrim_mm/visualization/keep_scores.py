"""Pictures of why: the scores by which a policy kept patches and words, as heat maps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from smarttrim_mm.visualization.figures import GREY, INK, SOFT_INK, score_colours
from smarttrim_mm.visualization.kept_patches import over_pixels
from smarttrim_mm.visualization.pair_rows import RowStyle, WordStyle, pair_rows
from smarttrim_mm.visualization.traces import PairTrace

_DROPPED = 205 * 0.88  # as kept_patches greys them
_HEAT, _PALE = 0.6, 0.5  # parts of the colours of scores in an image, and behind a word


def has_scores(traces: Sequence[PairTrace]) -> bool:
    """Whether a policy scored patches or words of some pair."""
    return any(trace.scores.patches or trace.scores.words for trace in traces)


def scores_figure(traces: Sequence[PairTrace], title: str = "") -> Figure:
    """One row a pair: the question and the image at each layer that decides, in the colours of its scores.

    Args:
        traces: The pairs, of one model.
        title: Heading.

    Raises:
        ValueError: If the policy gave no scores.
    """
    if not has_scores(traces):
        raise ValueError("traces hold no scores of patches or words: the policy has none; overwrite Policy.scores to draw them")
    threshold = next(trace.scores.threshold for trace in traces if has_scores([trace]))
    values = [*(each for trace in traces for part in (trace.scores.patches, trace.scores.words) for each in part.values())]
    colours, norm = score_colours(threshold, np.concatenate([each.ravel() for each in values]))

    def word(score: float) -> WordStyle:
        if np.isnan(score):
            return WordStyle(GREY, struck=True)
        rgb = np.array(colours(norm(score))[:3])
        return WordStyle(INK, background=tuple(_PALE * rgb + 1 - _PALE))

    def patches(trace: PairTrace, step: str) -> tuple[np.ndarray, str] | None:
        scores = trace.scores.patches.get(step)
        if scores is None:
            return None
        known = scores[~np.isnan(scores)]
        line = "none left" if not known.size else f"{known.min():.2f} to {known.max():.2f}"
        return heated(trace.pixels, scores, colours, norm), line

    style = RowStyle(
        words=lambda trace: trace.scores.words,
        word=word,
        patches=patches,
        grid=lambda trace, step: trace.scores.patches[step].shape,
    )
    what = "Keep score" if threshold is None else "Keep probability"
    legend = f"{what} of each patch and word, layer by layer; grey: dropped at an earlier layer."
    figure = pair_rows(traces, list(traces[0].scores.patches), style, title, legend)
    add_colour_bar(figure, colours, norm, threshold)
    return figure


def heated(pixels: np.ndarray, scores: np.ndarray, colours: Colormap, norm: Normalize) -> np.ndarray:
    """Lays the colours of scores over a grey image; where there is no score it is pale grey.

    Args:
        pixels: RGB uint8 [height, width, 3].
        scores: [rows, columns], NaN where there is none; rows and columns divide height and width.
        colours: Colours of 0 to 1.
        norm: From scores to 0 to 1.

    Returns:
        RGB uint8 [height, width, 3].
    """
    grey = pixels.astype(float).mean(-1, keepdims=True)
    known = ~np.isnan(scores)
    heat = 255 * np.asarray(colours(norm(np.where(known, scores, 0.0))))[..., :3]
    rgb = np.concatenate([over_pixels(pixels, heat[..., i]) for i in range(3)], -1)
    painted = np.where(over_pixels(pixels, known), (1 - _HEAT) * grey + _HEAT * rgb, 0.12 * grey + _DROPPED)
    return painted.round().astype(np.uint8)


def add_colour_bar(figure: Figure, colours: Colormap, norm: Normalize, threshold: float | None) -> None:
    """A bar in the upper right corner that says what the colours of scores mean."""
    width, height = figure.get_size_inches()
    long = 1.7
    panel = figure.add_axes((1 - (long + 0.3) / width, 1 - 0.34 / height, long / width, 0.1 / height))
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=panel, orientation="horizontal")
    bar.outline.set_linewidth(0.4)  # type: ignore[operator]
    ends = [float(norm.vmin or 0.0), float(norm.vmax or 1.0)]
    bar.set_ticks(ends if threshold is None else [0.0, threshold, 1.0])
    names = [f"{end:.2g}" for end in ends] if threshold is None else ["0", f"{threshold:.2g}", "1"]
    bar.set_ticklabels(names)
    panel.tick_params(labelsize=6, length=2, pad=1, colors=SOFT_INK)
    sides = ("less wanted", "more wanted") if threshold is None else ("dropped", "kept")
    for x, align, side in ((0.0, "left", sides[0]), (1.0, "right", sides[1])):
        panel.text(x, 1.5, side, transform=panel.transAxes, fontsize=7, ha=align, va="bottom", color=SOFT_INK)
