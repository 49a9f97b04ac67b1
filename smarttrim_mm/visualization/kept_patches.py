"""Pictures of what was pruned: images with their dropped patches greyed layer by layer, beside the question."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from smarttrim_mm.visualization.figures import GREY, save
from smarttrim_mm.visualization.pair_rows import RowStyle, WordStyle, pair_rows
from smarttrim_mm.visualization.traces import PairTrace

_LEGEND = (
    "Grey patches and struck words are left out or merged into others from that layer on; the class token and the text's ends "
    "always stay."
)


def draw_kept(traces: Sequence[PairTrace], path: str | Path, title: str = "") -> Path:
    """Draws :func:`kept_figure` into a PNG.

    Args:
        traces: The pairs, of one model.
        path: The picture.
        title: Heading.

    Returns:
        The path.

    Raises:
        ValueError: If there is nothing to draw.
    """
    return save(kept_figure(traces, title), path)


def kept_figure(traces: Sequence[PairTrace], title: str = "") -> Figure:
    """One row a pair: the question with its dropped words struck, the image, and the image at each layer.

    Args:
        traces: The pairs, of one model.
        title: Heading.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not traces:
        raise ValueError("traces is empty; expected at least one image-question pair to draw")
    style = RowStyle(
        words=lambda trace: trace.kept_words,
        word=lambda kept: WordStyle() if kept else WordStyle(GREY, struck=True),
        patches=_kept_patches,
        grid=lambda trace, step: trace.patches[step].shape,
    )
    return pair_rows(traces, list(traces[0].patches), style, title, _LEGEND)


def greyed(pixels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Fades the patches that are not kept to a pale grey.

    Args:
        pixels: RGB uint8 [height, width, 3].
        kept: bool [rows, columns]; rows and columns divide height and width.

    Returns:
        RGB uint8 [height, width, 3].
    """
    grey = pixels.astype(float).mean(-1, keepdims=True)
    return np.where(over_pixels(pixels, kept), pixels, 0.12 * grey + 0.88 * 205).round().astype(np.uint8)


def over_pixels(pixels: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Values of patches [rows, columns] at the pixels of an image, [height, width, 1]."""
    height, width = pixels.shape[0] // patches.shape[0], pixels.shape[1] // patches.shape[1]
    return patches.repeat(height, 0).repeat(width, 1)[..., None]


def _kept_patches(trace: PairTrace, step: str) -> tuple[np.ndarray, str] | None:
    kept = trace.patches.get(step)
    if kept is None:
        return None
    skipped = f"\n{trace.skipped[step]} skipped" if step in trace.skipped else ""
    return greyed(trace.pixels, kept), f"{int(kept.sum())} of {kept.size}{skipped}"
