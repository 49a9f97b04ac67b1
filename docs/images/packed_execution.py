"""Draws packed_execution.png, the figure of docs/speed.md: ``python docs/images/packed_execution.py``."""

from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from smarttrim_mm.visualization.figures import GREY, INK, KEPT, OFF, SOFT_INK, new_figure, save

COLOURS = (KEPT, "#c8692b", "#3b8a5a")
REAL = (8, 4, 7)  # tokens of each instance before padding
STAYS = ((0, 2, 3, 6), (0, 3), (0, 1, 2, 4, 6))  # original positions
HEADS_ON = ((0, 2, 3), (1,), (0, 1, 2))
HEADS, PITCH, CELL = 4, 1.14, 1.0


def cell(panel: Axes, x: float, y: float, text: str, *, face: str, edge: str, ink: str, style: str = "-") -> None:
    """A token."""
    panel.add_patch(Rectangle((x, y), CELL, CELL, facecolor=face, edgecolor=edge, linewidth=0.8, linestyle=style))
    panel.text(x + CELL / 2, y + CELL / 2 - 0.03, text, color=ink, fontsize=7, ha="center", va="center")


def batch(panel: Axes, x: float, y: float, decided: bool) -> None:
    """The padded batch, an instance a row; once it is decided, dropped tokens are pale."""
    for row, (real, kept, colour) in enumerate(zip(REAL, STAYS, COLOURS, strict=True)):
        for column in range(max(REAL)):
            at = (x + column * PITCH, y - row * PITCH)
            if column >= real:
                cell(panel, *at, "", face="white", edge=GREY, ink=GREY, style=":")
            elif decided and column not in kept:
                cell(panel, *at, str(column), face=OFF, edge=OFF, ink=GREY)
            else:
                cell(panel, *at, str(column), face=colour, edge=colour, ink="white")


def packed(panel: Axes, x: float, y: float) -> None:
    """The kept tokens end to end, and where each instance begins."""
    lengths = [len(kept) for kept in STAYS]
    tokens = [(position, colour) for kept, colour in zip(STAYS, COLOURS, strict=True) for position in kept]
    for i, (position, colour) in enumerate(tokens):
        cell(panel, x + i * PITCH, y, str(position), face=colour, edge=colour, ink="white")
    for begin in accumulate(lengths, initial=0):
        at = x + begin * PITCH - (PITCH - CELL) / 2
        panel.plot([at, at], [y - 0.6, y - 0.1], color=INK, linewidth=0.8)
        panel.text(at, y - 0.75, str(begin), color=INK, fontsize=7, ha="center", va="top")


def attention(panel: Axes, x: float, y: float, unit: float = 0.52) -> float:
    """The scores of each instance and head, [n, n]; returns where the last one ends."""
    for number, (kept, on, colour) in enumerate(zip(STAYS, HEADS_ON, COLOURS, strict=True)):
        size, begin = unit * len(kept), x
        for head in range(HEADS):
            if head in on:
                panel.add_patch(Rectangle((x, y), size, size, facecolor=colour, edgecolor=colour, linewidth=0.8))
            else:
                panel.add_patch(Rectangle((x, y), size, size, facecolor="white", edgecolor=GREY, linewidth=0.8, linestyle=":"))
            panel.text(x + size / 2, y - 0.2, str(head), color=INK if head in on else GREY, fontsize=6.5, ha="center", va="top")
            x += size + 0.3
        middle = (begin + x - 0.3) / 2
        panel.text(middle, y - 1.15, f"instance {number}", color=SOFT_INK, fontsize=7, ha="center", va="top")
        x += 0.8
    return x - 1.1


def title(panel: Axes, x: float, y: float, text: str, below: str) -> None:
    panel.text(x, y + 0.95, text, color=INK, fontsize=8.5, weight="bold", ha="left", va="bottom")
    panel.text(x, y, below, color=SOFT_INK, fontsize=7, ha="left", va="bottom")


def arrow(panel: Axes, begin: tuple[float, float], end: tuple[float, float]) -> None:
    panel.add_patch(FancyArrowPatch(begin, end, arrowstyle="-|>", mutation_scale=9, color=SOFT_INK, linewidth=1.0))


def draw() -> None:
    """Draws and saves the figure beside this file."""
    figure = new_figure(9.6, 3.5)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set_xlim(0, 48)
    panel.set_ylim(1.2, 18.7)
    panel.set_axis_off()
    top, bottom = 14.4, 3.9
    title(panel, 0.6, 16, "padded batch [B, N, D]", "dotted: padding")
    batch(panel, 0.6, top, decided=False)
    arrow(panel, (10.1, top - 0.6), (12.1, top - 0.6))
    title(panel, 12.6, 16, "decisions", "pale: dropped")
    batch(panel, 12.6, top, decided=True)
    arrow(panel, (22.1, top - 0.6), (24.1, top - 0.6))
    title(panel, 24.8, 16, "packed [S, D]", "numbers: original positions; norms, linears and MLPs run on these S rows")
    packed(panel, 24.8, top - 0.2)
    panel.text(38.2, top - 1.5, "cu_seqlens", color=INK, fontsize=7, style="italic", ha="left", va="bottom")
    title(
        panel,
        0.6,
        8.1,
        "attention",
        "of each (instance, head) that is on, n x n scores; dotted heads are off: not attended, where it pays not projected",
    )
    end = attention(panel, 0.6, bottom)
    arrow(panel, (end + 0.6, bottom + 1.2), (end + 2.6, bottom + 1.2))
    title(panel, end + 3.3, 6.2, "output [S, D]", "the next step cuts it again")
    packed(panel, end + 3.3, bottom + 0.6)
    save(figure, Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    draw()
