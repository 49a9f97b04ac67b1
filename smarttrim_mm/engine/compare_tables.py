"""The tables of a comparison: CSV for machines, Markdown for people, JSON with everything."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import torch

from smarttrim_mm.engine.compare_plan import DENSE, ComparePlan
from smarttrim_mm.engine.compare_results import COLLAPSED, Result
from smarttrim_mm.engine.compare_runs import Run
from smarttrim_mm.engine.compare_summary import Spread, Summary
from smarttrim_mm.engine.compare_variants import Variant
from smarttrim_mm.engine.comparison import Comparison
from smarttrim_mm.engine.machine import machine, versions
from smarttrim_mm.engine.stages import shown_path
from smarttrim_mm.utils.checkpoint_io import write_atomically

COLUMNS = (
    "name", "policy", "config", "options", "budget", "seed", "status", "accuracy", "questions", "multiply_adds",
    "multiply_adds_p05", "multiply_adds_p50", "multiply_adds_p95", "dense_multiply_adds", "speedup", "speedup_error",
    "executed_multiply_adds", "knob", "knob_value", "held_out_speedup", "clock_speedup", "clock_q1", "clock_q3",
    "clock_batch_size", "clock_threads", "collapsed", "train_seconds", "folder", "reason", "command",
)  # fmt: skip
UNITS = (
    "accuracy in 0-1; multiply-adds in M per sample, of the whole model, the policy's own included; speedup: mean dense over "
    "mean decided multiply-adds; speedup_error: speedup / budget - 1; clock_speedup: times as fast as the dense model, the "
    "median of rounds, with quartiles; seconds of wall clock"
)
_POINT = 100


def csv_table(results: Sequence[Result]) -> str:
    """One line a run; what is not known is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        writer.writerow({name: "" if value is None else value for name, value in record(result).items() if name in COLUMNS})
    return out.getvalue()


def record(result: Result) -> dict[str, Any]:
    """A run as plain data, by the names of :data:`COLUMNS`."""
    run = result.run
    return {
        **dict.fromkeys(COLUMNS),
        "folder": shown_path(run.folder, run.root),
        "command": " && ".join(result.commands),
        **result.numbers,
        **settings_of(run),
        "status": result.status,
        "reason": " ".join(result.reason.split()),
    }


def settings_of(run: Run) -> dict[str, Any]:
    """What a table says of how a run was made, by the names of :data:`COLUMNS`."""
    row = run.variant.row
    return {
        "name": run.variant.name,
        "policy": run.variant.policy.__name__,
        "config": row.config if row.config is not None else "recipe",
        "options": json.dumps(dict(row.options), default=str) if row.options else "",
        "budget": run.budget,
        "seed": run.seed,
    }


def markdown(plan: ComparePlan, summaries: Sequence[Summary], notes: Sequence[str], command: str) -> str:
    """A table a budget, with what is to be known to read it.

    Args:
        plan: The plan.
        summaries: Of all rows.
        notes: What a reader should know of how rows differ.
        command: That made the comparison.
    """
    lines = [f"# {plan.name}", "", f"`{command}`", ""]
    budgets = sorted({each.budget for each in summaries if each.budget is not None})
    headings: list[float | None] = [*budgets] or [None]
    for budget in headings:
        shown = [each for each in summaries if each.budget in (None, budget)]
        lines += [f"## {_heading(budget)}", "", *_table(plan, shown), ""]
    lines += ["## How to read it", "", *(f"- {note}" for note in (*_legend(plan, summaries), *notes)), ""]
    lines += _not_done(summaries)
    lines += ["## Commands", "", *_commands(summaries), "", "## Machine", "", *_machine()]
    return "\n".join(lines) + "\n"


def write_tables(
    folder: Path,
    plan: ComparePlan,
    results: Sequence[Result],
    summaries: Sequence[Summary],
    *,
    notes: Sequence[str],
    command: str,
) -> None:
    """Writes ``results.csv``, ``results.md`` and ``results.json``, each whole or not at all.

    Args:
        folder: Where they go.
        plan: The plan.
        results: Of all runs.
        summaries: Of all rows.
        notes: What a reader should know of how rows differ.
        command: That made the comparison.
    """
    content = {
        "plan": plan.name,
        "command": command,
        "units": UNITS,
        "collapsed": COLLAPSED,
        "notes": list(notes),
        "machine": _here(),
        "versions": versions(),
        "runs": [{**record(result), "commands": list(result.commands), "clocks": list(result.clocks)} for result in results],
        "rows": [_numbers(each) for each in summaries],
    }
    write_atomically(folder / "results.csv", csv_table(results).encode())
    write_atomically(folder / "results.json", (json.dumps(content, indent=1, default=str) + "\n").encode())
    write_atomically(folder / "results.md", markdown(plan, summaries, notes, command).encode())


def notes_of(variants: Sequence[Variant], differing: Mapping[str, Sequence[str]]) -> list[str]:
    """What a reader should know of how rows differ.

    Args:
        variants: Those of the rows.
        differing: As :func:`~smarttrim_mm.engine.compare_variants.differences` gives it.
    """
    notes = [f"{each.name}: {note}." for each in variants for note in each.notes]
    first = next((each.name for each in variants if each.row.train), "")
    return notes + [
        f"{name} differs from {first} not in policy, hooks and budget alone, but in {', '.join(f'`{n}`' for n in names)}."
        for name, names in differing.items()
    ]


def _heading(budget: float | None) -> str:
    return "Models of their own compute" if budget is None else f"Budget {budget:g}x"


def _table(plan: ComparePlan, shown: Sequence[Summary]) -> list[str]:
    first = plan.rows[0].name
    clocked = any(each.mean("clock_speedup") is not None for each in shown)
    names = ["row", "seeds", "accuracy", "against dense", f"against {first}", "M multiply-adds (5th-95th)", "ratio"]
    names += ["clock", "Pareto"] if clocked else ["Pareto"]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for each in shown:
        done = len(each.done)
        taken = sum(bool(result.source) for result in each.done)
        cells = [each.name, f"{done}/{len(each.results)}" + (f" ({taken} earlier)" if taken else "")]
        if not done:
            cells += [_statuses(each), *[""] * (len(names) - 3)]
            lines.append(f"| {' | '.join(cells)} |")
            continue
        low, high = each.mean("multiply_adds_p05"), each.mean("multiply_adds_p95")
        cells += [
            _with_spread(each.spread("accuracy"), 4) + _marks(each),
            _difference(each.against_dense),
            _difference(each.against_first),
            f"{each.mean('multiply_adds'):.2f} ({low:.2f}-{high:.2f})",
            _with_spread(each.spread("speedup"), 2, "x"),
        ]
        cells += [_with_spread(each.spread("clock_speedup"), 2, "x")] if clocked else []
        cells.append(", ".join(sorted(each.fronts)).replace("multiply_adds", "compute"))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _legend(plan: ComparePlan, summaries: Sequence[Summary]) -> list[str]:
    clock = plan.benchmark
    found = [
        "Accuracy, ratio and clock: mean over the seeds that are done, ± standard deviation.",
        "Differences in points, paired question by question within each seed; in brackets two standard errors of drawing other "
        "questions (those of one image count as one draw). Seeds are not drawn anew in them.",
        "Multiply-adds of the whole model per sample, trimmers included, decided; ratio: dense over decided. Rows were "
        f"calibrated on held-out data {plan.margin:.0%} above the budget and tested once on the whole test split.",
        "Pareto: no other row, at any budget, is as accurate (against the dense model of the same seeds) and as cheap, and "
        "better in one of the two.",
        COLLAPSED,
    ]
    if any(each.mean("clock_speedup") is not None for each in summaries):
        found.append(
            f"Clock: times as fast as the host's dense forward (with SDPA where it can be had), medians of rounds at batch "
            f"{max(clock.batch_sizes)}, {clock.threads[0]} thread(s)."
        )
    return found


def _not_done(summaries: Sequence[Summary]) -> list[str]:
    lines = [
        f"- {result.run.title}: {result.status}{': ' if result.reason else ''}{' '.join(result.reason.split())[:600]}"
        for each in summaries
        for result in each.results
        if not result.done
    ]
    return ["## Not done", "", *lines, ""] if lines else []


def _commands(summaries: Sequence[Summary]) -> list[str]:
    lines = []
    for each in summaries:
        for result in each.results:
            if result.commands:
                lines += [f"{result.run.title}:", "", "```bash", *result.commands, "```", ""]
    return lines or ["Nothing was run yet."]


def _machine() -> list[str]:
    here = {**_here(), **{name: version for name, version in versions().items() if version is not None}}
    return [f"- {name}: {value}" for name, value in here.items()]


def _here() -> dict[str, Any]:
    return machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _with_spread(spread: Spread | None, digits: int, unit: str = "") -> str:
    if spread is None:
        return ""
    deviation = "" if isnan(spread.deviation) else f" ± {spread.deviation:.{digits}f}"
    return f"{spread.mean:.{digits}f}{unit}{deviation}"


def _difference(found: Comparison | None) -> str:
    return "" if found is None else f"{found.difference * _POINT:+.2f} ({2 * found.standard_error * _POINT:.2f})"


def _marks(each: Summary) -> str:
    collapsed = sum(bool(result.numbers.get("collapsed")) for result in each.done)
    return f" ({collapsed} collapsed)" if collapsed else ""


def _statuses(each: Summary) -> str:
    return ", ".join(dict.fromkeys(result.status for result in each.results))


def _numbers(each: Summary) -> dict[str, Any]:
    def plain(found: Comparison | None) -> dict[str, Any] | None:
        return None if found is None else {**vars(found), "ties": found.ties}

    def numbers(found: Spread | None) -> dict[str, float] | None:
        return None if found is None else {"mean": found.mean, "deviation": found.deviation}

    columns = ("accuracy", "multiply_adds", "speedup", "clock_speedup", "train_seconds")
    return {
        "name": each.name,
        "budget": each.budget,
        "seeds": [result.run.seed for result in each.done],
        **{name: numbers(each.spread(name)) for name in columns},
        "against_dense": plain(each.against_dense),
        "against_first": plain(each.against_first) if each.name != DENSE else None,
        "pareto": sorted(each.fronts),
    }
