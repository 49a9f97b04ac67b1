"""Runs that were done before, on another machine or in another work dir: lines of its ``results.csv`` stand in for them."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from smarttrim_mm.engine.compare_results import DONE, Result
from smarttrim_mm.engine.compare_runs import Run
from smarttrim_mm.engine.compare_tables import COLUMNS, settings_of

Key = tuple[str, float | None, int]  # name of the row, budget, seed
_SETTINGS = ("policy", "config", "options")  # of a run, which have to agree
_AS_THEY_ARE = ("knob", "collapsed", "folder", "command")
_WHOLE = ("questions", "clock_batch_size", "clock_threads")
_NEEDED = ("accuracy", "multiply_adds", "multiply_adds_p05", "multiply_adds_p95", "speedup")
_DIGITS = re.compile(r"-([0-9a-f]{8})/[^/]+/seed-\d+$")


def read_earlier(paths: Sequence[str], runs: Sequence[Run]) -> dict[Key, Mapping[str, Any]]:
    """The numbers of runs that are done in earlier results, with ``source``, the file.

    Of a run that several files hold, the first one's count. Lines of runs that the plan does not ask for are left out.

    Args:
        paths: Files ``results.csv`` of comparisons.
        runs: All runs of the plan.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is no such table, a line cannot be read, its settings are not the plan's, or the plan asks for
            none of its runs.
    """
    wanted = {key_of(run): run for run in runs}
    found: dict[Key, Mapping[str, Any]] = {}
    for path in paths:
        known = 0
        for line in _lines(path):
            try:
                key, numbers = _read(line)
            except ValueError as error:
                raise ValueError(f"--earlier {path}: the line of {line['name']!r} cannot be read: {error}") from error
            run = wanted.get(key)
            if run is None:
                continue
            known += 1
            _check(path, line, run)
            if line["status"] == DONE:
                found.setdefault(key, {**numbers, "source": path, "digits": _digits(line["folder"])})
        if not known:
            raise ValueError(f"--earlier {path}: the plan asks for none of its runs; give the results.csv of the same plan")
    return found


def key_of(run: Run) -> Key:
    """What a run and its line in a table have in common."""
    return run.variant.name, run.budget, run.seed


def with_earlier(results: Sequence[Result], earlier: Mapping[Key, Mapping[str, Any]]) -> list[Result]:
    """Results in which earlier ones stand for runs that are not done here.

    Args:
        results: Of all runs.
        earlier: As :func:`read_earlier` gives it.
    """
    return [result if result.done else _taken(result, earlier.get(key_of(result.run))) for result in results]


def earlier_notes(results: Sequence[Result], earlier: Mapping[Key, Mapping[str, Any]]) -> list[str]:
    """What a reader should know of the results that were taken over.

    Args:
        results: As :func:`with_earlier` gives them.
        earlier: As :func:`read_earlier` gives it.
    """
    taken = [result for result in results if result.source]
    notes = []
    for source in dict.fromkeys(result.source for result in taken):
        own = [result for result in taken if result.source == source]
        notes.append(
            f"Earlier: {len(own)} runs are those of `{source}` and were not run again: {_listed(own)}. They take no part in "
            "paired differences and in what each input keeps, and their clocks are those of the machine that they ran on."
        )
    mixed = {result.run.seed for result in taken} & {result.run.seed for result in results if result.done and not result.source}
    if mixed:
        notes.append(
            f"Earlier: of seed {', '.join(map(str, sorted(mixed)))}, rows that were run here start from the dense model that "
            "was made here, earlier rows from theirs, unless the plan gives the checkpoint."
        )
    others = [each for each in taken if _digits(each.run.folder.as_posix()) != earlier[key_of(each.run)]["digits"]]
    if others:
        notes.append(
            "Earlier: not all settings beneath the row's own are the same there and here (data, dense checkpoint, schedule, "
            f"margin, or what a newer version of the project sets), by the names of the folders: {_listed(others)}."
        )
    return notes


def _listed(results: Sequence[Result]) -> str:
    return "; ".join(result.run.title for result in results)


def _taken(result: Result, line: Mapping[str, Any] | None) -> Result:
    if line is None:
        return result
    numbers = {name: value for name, value in line.items() if name in COLUMNS}
    if "clock_speedup" in numbers:
        numbers["clock_time"] = 1 / numbers["clock_speedup"]
    return replace(result, status=DONE, reason=f"from {line['source']}", numbers=numbers, commands=(), source=line["source"])


def _lines(path: str) -> list[dict[str, str]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"--earlier {path}: no such file; give the results.csv of a comparison")
    with Path(path).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"--earlier {path}: has no column {', '.join(missing)}; give the results.csv of a comparison")
        return list(reader)


def _read(line: Mapping[str, str]) -> tuple[Key, dict[str, Any]]:
    """Whose numbers a line holds, and the numbers."""
    if None in line or None in line.values():
        raise ValueError("it has not as many fields as the table has columns")
    key = line["name"], float(line["budget"]) if line["budget"] else None, int(line["seed"])
    numbers = {name: _value(name, text) for name, text in line.items() if text != ""}
    missing = [name for name in _NEEDED if name not in numbers]
    if line["status"] == DONE and missing:
        raise ValueError(f"its status is {DONE!r}, and {', '.join(missing)} is empty")
    return key, numbers


def _check(path: str, line: Mapping[str, str], run: Run) -> None:
    own = settings_of(run)
    for name in _SETTINGS:
        if line[name] != own[name]:
            raise ValueError(
                f"--earlier {path}: {name} of {run.title} is {line[name]!r} there and {own[name]!r} in this plan; give the "
                "results of the same plan, or the row another name"
            )


def _value(name: str, text: str) -> Any:
    if name in _AS_THEY_ARE:
        return text
    if name in _WHOLE:
        return int(text)
    return text if name in ("name", "status", "reason", *_SETTINGS) else float(text)


def _digits(folder: str) -> str:
    """What the settings of a run are named by in its folder; empty if the folder is none of a run."""
    found = _DIGITS.search(folder)
    return found[1] if found else ""
