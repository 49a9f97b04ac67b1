"""A cost sheet as a picture: multiply-adds of each layer, dense and at the budget."""

from itertools import groupby
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from smarttrim_mm.engine.cost_sheet import CostSheet

_DENSE, _LEFT, _POLICY = "#c9d8e8", "#1f5fa8", "#b42318"


def unit_of(multiply_adds: float) -> tuple[float, str]:
    """The unit to print a model's compute in: ``(1e9, 'G')`` or ``(1e6, 'M')``."""
    return (1e9, "G") if multiply_adds >= 1e9 else (1e6, "M")


def draw_cost(sheet: CostSheet, path: str | Path) -> Path:
    """Draws a bar a layer, in the order of execution: dense, and before it what the budget leaves, the policy on top.

    Args:
        sheet: The sheet.
        path: The picture, a PNG.

    Returns:
        The path.
    """
    unit, letter = unit_of(sheet.dense)
    layers = sheet.layers
    figure = Figure(figsize=(max(5.0, 1.2 + 0.24 * len(layers)), 3.6), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    places = range(len(layers))
    panel.bar(places, [layer.dense / unit for layer in layers], width=0.86, color=_DENSE, label="dense")
    if sheet.budget is not None:
        left = [(layer.left or 0.0) / unit for layer in layers]
        policy = [(layer.policy or 0.0) / unit for layer in layers]
        panel.bar(places, left, width=0.5, color=_LEFT, label=f"at {sheet.budget.speedup:g}x")
        if any(policy):
            panel.bar(places, policy, width=0.5, bottom=left, color=_POLICY, label=f"{sheet.policy} itself")
    panel.set_xticks(list(places), [layer.name.rpartition(".")[2].replace("_", " ") for layer in layers], rotation=90)
    begin = 0
    for part, run in groupby(layers, key=lambda layer: layer.name.rpartition(".")[0]):
        count = len(list(run))
        panel.text(begin + (count - 1) / 2, 1.02, part, transform=panel.get_xaxis_transform(), ha="center", fontsize=9)
        if begin:
            panel.axvline(begin - 0.5, color="#9a9a9a", linewidth=0.6, linestyle=":")
        begin += count
    panel.set_title(f"{sheet.backbone}, {sheet.sizes}", fontsize=11, weight="bold", pad=18)
    panel.set_ylabel(f"multiply-adds per sample, {letter}", fontsize=9)
    panel.set_xlim(-0.7, len(layers) - 0.3)
    panel.grid(axis="y", color="#e2e2e2", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=7)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return Path(path)
