"""A picture of what the clock keeps of the multiply-adds that a policy saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from smarttrim_mm.visualization.figures import GREY, INK, SOFT_INK, new_figure

_MARKERS = "osD^vP*X<>hp"


def draw_clocks(content: Mapping[str, Any]) -> Figure:
    """Speed-up by the clock against the ratio of multiply-adds, a point each contender and batch size, beside the ideal.

    Args:
        content: What ``tools/benchmark.py`` writes as JSON. The clock's ratio is over the dense model with SDPA, or else over
            the host's forward; bars are the middle half of the rounds.
    """
    results = content["results"]
    baseline = next((result["sdpa_baseline"] for result in results), None)
    key = "speedup" if baseline is None else "speedup_over_sdpa"
    kinds = [_label(result, results) for result in results]
    colours = {kind: colormaps["viridis"](0.9 * number / len(kinds)) for number, kind in enumerate(kinds)}
    markers: dict[str, str] = {}
    figure = new_figure(7.2, 5.0)
    panel = figure.add_axes((0.09, 0.11, 0.55, 0.8))
    reach = [1.0]
    for kind, result in zip(kinds, results, strict=True):
        for name, row in result["contenders"].items():
            if row["dense_over_decided"] is None:
                continue
            who = name.rpartition(" at ")[0] or name
            marker = markers.setdefault(who, _MARKERS[len(markers) % len(_MARKERS)])
            x, ratio = row["dense_over_decided"], row[key]
            below, above = ratio["median"] - ratio["q1"], ratio["q3"] - ratio["median"]
            panel.errorbar(
                x, ratio["median"], yerr=[[below], [above]], fmt=marker, ms=5, color=colours[kind], lw=1, capsize=2, alpha=0.9
            )
            reach += [x, ratio["q3"]]
    most = 1.06 * max(reach)
    panel.plot([0, most], [0, most], color=GREY, linewidth=1, linestyle="--", zorder=0)
    panel.axhline(1, color=GREY, linewidth=0.6, linestyle=":", zorder=0)
    panel.set_xlim(0.9, most)
    panel.set_ylim(0, most)
    panel.set_xlabel("multiply-adds, dense over decided", fontsize=9)
    panel.set_ylabel(f"clock, times faster than {baseline or 'the host'}", fontsize=9)
    panel.set_title(f"{content['model']}, {content['dtype']}", fontsize=11, weight="bold", color=INK, parse_math=False)
    panel.tick_params(labelsize=8, colors=SOFT_INK)
    panel.grid(color="#e6e6e6", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    handles = [Line2D([], [], color=colour, marker="s", linestyle="", label=kind) for kind, colour in colours.items()]
    handles += [Line2D([], [], color=INK, marker=marker, linestyle="", label=who) for who, marker in markers.items()]
    handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle="--", label="ideal"))
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.65, 0.92), fontsize=8, frameon=False)
    return figure


def _label(result: Mapping[str, Any], results: list[Mapping[str, Any]]) -> str:
    several = len({each["threads"] for each in results}) > 1
    threads = f", {result['threads']} threads" if several else ""
    return f"batch {result['batch_size']}{threads}"
