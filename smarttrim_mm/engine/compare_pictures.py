"""The figures of a comparison: accuracy against compute, the clock and the dense model's, and what each input keeps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smarttrim_mm.engine.compare_plan import DENSE, ComparePlan
from smarttrim_mm.engine.compare_results import record_key
from smarttrim_mm.engine.compare_summary import Summary, beside_dense
from smarttrim_mm.visualization.figures import save
from smarttrim_mm.visualization.kept_compute import Strip, draw_kept_compute
from smarttrim_mm.visualization.paired_differences import Difference, draw_differences
from smarttrim_mm.visualization.trade_off import Point, Series, draw_trade_off

COMPUTE, CLOCK, SPREAD = "accuracy_compute.png", "accuracy_clock.png", "compute_spread.png"
DIFFERENCES = "accuracy_differences.png"


def draw_all(folder: Path, plan: ComparePlan, summaries: Sequence[Summary]) -> list[Path]:
    """Draws what there is something to draw of.

    Args:
        folder: Where the figures go.
        plan: The plan.
        summaries: Of all rows.

    Returns:
        The files that were written.

    Raises:
        ValueError: If kept compute is to be grouped by a field that no answer has.
    """
    accuracy = plan.metric or "accuracy"
    drawn = []
    series = _series(plan, summaries, "multiply_adds", "multiply_adds")
    if series:
        cost = "decided multiply-adds of the whole model, M per sample"
        drawn.append(save(draw_trade_off(series, cost=cost, accuracy=accuracy, title=plan.name), folder / COMPUTE))
    series = _series(plan, summaries, "clock_time", "clock")
    if any(not each.dense for each in series):
        clock = plan.benchmark
        cost = f"time over the dense model's, batch {max(clock.batch_sizes)}, {clock.threads[0]} thread(s)"
        drawn.append(save(draw_trade_off(series, cost=cost, accuracy=accuracy, title=plan.name), folder / CLOCK))
    differences = _differences(plan, summaries)
    if differences:
        drawn.append(save(draw_differences(differences, accuracy=accuracy, title=plan.name), folder / DIFFERENCES))
    panels = _panels(plan, summaries)
    if panels:
        by = "" if plan.group_by is None else f", by {plan.group_by}"
        drawn.append(save(draw_kept_compute(panels, f"{plan.name}: kept compute per input{by}"), folder / SPREAD))
    return drawn


def _series(plan: ComparePlan, summaries: Sequence[Summary], column: str, front: str) -> list[Series]:
    found = []
    for name in (DENSE, *(row.name for row in plan.rows)):
        points = []
        for each in summaries:
            pairs = [(r.numbers.get(column), r.numbers["accuracy"]) for r in each.done] if each.name == name else []
            known = [(cost, value) for cost, value in pairs if cost is not None]
            if known:
                costs, values = zip(*known, strict=True)
                points.append(Point(costs, values, on_front=front in each.fronts))
        if points:
            found.append(Series(name, tuple(points), dense=name == DENSE))
    return found


def _differences(plan: ComparePlan, summaries: Sequence[Summary]) -> list[tuple[str, list[Difference]]]:
    """Of each budget, and of the rows that have none, whatever has a dense model of the same seed."""
    names = [row.name for row in plan.rows]
    panels: dict[float | None, list[Difference]] = {}
    for each in summaries:
        pairs, paired = beside_dense(each, summaries), each.against_dense
        if each.name == DENSE or not pairs:
            continue
        seeds = tuple(100 * (one.numbers["accuracy"] - other.numbers["accuracy"]) for one, other in pairs)
        # earlier results come without answers: the error would be that of fewer seeds
        partly = any(one.source or other.source for one, other in pairs)
        error = None if paired is None or partly else 200 * paired.standard_error
        panels.setdefault(each.budget, []).append(Difference(each.name, seeds, error, names.index(each.name) + 1))
    order = sorted(panels, key=lambda budget: (budget is None, budget))
    return [("at their own compute" if budget is None else f"{budget:g}x", panels[budget]) for budget in order]


def _panels(plan: ComparePlan, summaries: Sequence[Summary]) -> list[tuple[str, list[Strip]]]:
    names = [row.name for row in plan.rows]
    panels = []
    for budget in sorted({each.budget for each in summaries if each.budget is not None}):
        strips = []
        for each in summaries:
            if each.budget == budget and any(result.shares for result in each.done):
                strips += _strips(plan, each, names.index(each.name) + 1)
        if strips:
            panels.append((f"{budget:g}x", strips))
    return panels


def _strips(plan: ComparePlan, summary: Summary, row: int) -> list[Strip]:
    shares = np.array([share for result in summary.done for share in result.shares.values()])
    whole = Strip(summary.name, shares, row)
    if plan.group_by is None:
        return [whole]
    grouped: dict[object, list[float]] = {}
    fields: set[str] = set()
    for result in summary.done:
        for record in result.predictions:
            fields |= record.keys()
            if plan.group_by in record and record_key(record) in result.shares:
                grouped.setdefault(record[plan.group_by], []).append(result.shares[record_key(record)])
    if not grouped:
        raise ValueError(f"group_by is {plan.group_by!r}, which no answer of {summary.name!r} has; there are {sorted(fields)}")
    order = sorted(grouped, key=lambda value: (str(type(value)), value))
    parts = [Strip(f"{plan.group_by} {value}", np.array(grouped[value]), row, n, len(order)) for n, value in enumerate(order)]
    return [whole, *parts]
