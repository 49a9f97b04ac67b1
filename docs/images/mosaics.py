"""Draws mosaics.png, the figure of docs/data.md: ``python docs/images/mosaics.py``."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from smarttrim_mm.datasets.load_mosaic import LoadMosaic
from smarttrim_mm.datasets.mosaic_vqa import MosaicVQA
from smarttrim_mm.visualization.figures import GREY, INK, KEPT, SOFT_INK, bare, new_figure, save

FILLED = (1, 3, 6, 9)


def mosaic(panel: Axes, record: dict) -> None:
    """A mosaic with its first question; the asked cell has a frame."""
    grid, size = record["mosaic"]["grid"], record["mosaic"]["cell_size"]
    panel.imshow(LoadMosaic()(dict(record))["img"][..., ::-1], extent=(0, grid, grid, 0), interpolation="nearest")
    for line in range(1, grid):
        panel.axhline(line, color=GREY, linewidth=0.5)
        panel.axvline(line, color=GREY, linewidth=0.5)
    fact = record["facts"][0]
    row, column = fact["asked_cell"]
    panel.add_patch(Rectangle((column - 1, row - 1), 1, 1, fill=False, edgecolor=KEPT, linewidth=2.2, zorder=3))
    bare(panel)
    place, question = record["questions"][0].split(": ")
    cells = "cell" if fact["filled_cells"] == 1 else "cells"
    panel.set_title(f"{fact['filled_cells']} filled {cells}, {grid * size} px", color=SOFT_INK, fontsize=7.5, loc="left", pad=4)
    panel.text(0, grid + 0.1, f"{place}:\n{question}", color=INK, fontsize=7.5, va="top")
    panel.text(0, grid + 0.5, record["answers"][0], color=KEPT, fontsize=7.5, weight="bold", va="top")


def draw() -> None:
    """Draws and saves the figure beside this file."""
    dataset = MosaicVQA(split="val", num_mosaics=100)
    records = [dataset.get_data_info(i) for i in range(len(dataset))]
    figure = new_figure(9.6, 3.2)
    for i, filled in enumerate(FILLED):
        record = next(one for one in records if len(one["img_paths"]) == filled)
        mosaic(figure.add_axes((0.012 + 0.25 * i, 0.205, 0.226, 0.72)), record)
    save(figure, Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    draw()
