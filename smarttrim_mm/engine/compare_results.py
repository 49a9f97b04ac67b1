"""What the runs of a comparison found: numbers from the files that the tools wrote, none from anywhere else."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from smarttrim_mm.engine.compare_clocks import clock_numbers, read_clocks
from smarttrim_mm.engine.compare_execution import read_failure
from smarttrim_mm.engine.compare_plan import DENSE, ComparePlan
from smarttrim_mm.engine.compare_runs import Run
from smarttrim_mm.engine.stages import shown_path

DONE, NOT_RUN, DAMAGED = "done", "not run", "damaged"
NO_SPREAD = 0.01  # of the share that inputs keep, from the 5th to the 95th percentile
COLLAPSED = (
    "A run counts as collapsed if its accuracy is not above that of the best constant answer, or if the policy decides for "
    f"each input and yet the 5th and the 95th percentile of what inputs keep lie less than {NO_SPREAD:g} of dense apart."
)
_MILLION = 1e6
_UNREAD = ("question", "prediction", "score", "predicted_box", "box")


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        run: The run.
        name: Of its row.
        status: ``'done'`` (tested), ``'not run'``, or why it is not done.
        reason: Of a failure.
        numbers: Columns of the table, by name; what is not known is left out.
        predictions: Of the test.
        shares: Multiply-adds of each test input over the dense model's, by its key.
        clocks: Results of the benchmark, for each batch size and number of threads.
        commands: Of the stages that were run.
        source: The earlier results that it was taken from, which say no more than its numbers; empty: it was run here.
    """

    run: Run
    name: str
    status: str
    reason: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    predictions: Sequence[Mapping[str, Any]] = ()
    shares: Mapping[Any, float] = field(default_factory=dict)
    clocks: Sequence[Mapping[str, Any]] = ()
    commands: Sequence[str] = ()
    source: str = ""

    @property
    def done(self) -> bool:
        return self.status == DONE


def read_results(plan: ComparePlan, runs: Sequence[Run]) -> list[Result]:
    """What is known of every run, in the order of the plan.

    A run whose files are missing or damaged has a status that says so.

    Args:
        plan: The plan.
        runs: All runs, see :func:`~smarttrim_mm.engine.compare_runs.plan_runs`.
    """
    dense: dict[int, dict[Any, float]] = {}
    of_seed = {run.seed: run for run in reversed(runs) if run.variant.row.name == DENSE}
    found = []
    for run in runs:
        try:
            result = _read(plan, run, of_seed[run.seed], dense.get(run.seed, {}))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = f"{type(error).__name__}: {error}; remove {shown_path(run.folder / 'tested', run.root)} and run it again"
            result = Result(run, run.variant.name, DAMAGED, reason)
        if run is of_seed[run.seed] and result.done:  # it comes before the others of its seed
            spent = {record_key(each): each["multiply_adds"] for each in result.predictions if "multiply_adds" in each}
            dense[run.seed] = spent
            result = replace(result, shares=dict.fromkeys(spent, 1.0))
        found.append(result)
    return found


def accuracy(plan: ComparePlan, answers: Mapping[str, Any]) -> float:
    """The accuracy of a test, 0-1 or as the metric gives it.

    Raises:
        ValueError: If it is not among what the test wrote.
    """
    if plan.metric is not None:
        if plan.metric not in answers["metrics"]:
            raise ValueError(f"metric is {plan.metric!r}; the test wrote {', '.join(sorted(answers['metrics']))}")
        return float(answers["metrics"][plan.metric])
    if not judged(answers["predictions"]):
        raise ValueError(
            "the answers of the test cannot be told right from wrong by themselves; set the plan's metric to one of "
            f"{', '.join(sorted(answers['metrics']))}"
        )
    return sum(each["predicted_answer"] == each["answer"] for each in answers["predictions"]) / len(answers["predictions"])


def judged(predictions: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each prediction has an answer beside it."""
    return bool(predictions) and all("predicted_answer" in each and "answer" in each for each in predictions)


def collapse(accuracy: float, predictions: Sequence[Mapping[str, Any]], shares: Sequence[float], per_input: bool) -> str:
    """Says in words whether a run has collapsed; empty if not. The rule is :data:`COLLAPSED`.

    Args:
        accuracy: In 0-1.
        predictions: Of the test.
        shares: Kept compute of each input over dense.
        per_input: Whether the policy decides for each input how much it keeps.
    """
    if judged(predictions):
        constant = Counter(each["answer"] for each in predictions).most_common(1)[0][1] / len(predictions)
        if accuracy <= constant:
            return f"accuracy not above {constant:.4f}, a constant answer's"
    if per_input and len(shares) > 1:
        low, high = np.percentile(np.asarray(shares), [5, 95])
        if high - low < NO_SPREAD:
            return f"all inputs keep {low:.2f}-{high:.2f}"
    return ""


def record_key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a prediction from the others of a test."""
    return record.get("image_id"), record.get("question_id"), record.get("identifier")


def _read(plan: ComparePlan, run: Run, dense_run: Run, dense: Mapping[Any, float]) -> Result:
    name = run.variant.name
    markers = _markers(run)
    commands = [marker["command"] for marker in markers]
    failure = read_failure(run.folder)
    tested = any(marker["name"] == "test" and marker["status"] == "done" for marker in markers)
    if failure is not None and failure.stage != "benchmark":
        return Result(run, name, failure.status, failure.reason, {"command": failure.command}, commands=commands)
    if not tested or not run.answers.is_file() or not run.compute.is_file():
        return Result(run, name, NOT_RUN, commands=commands)
    answers, compute = _json(run.answers), _json(run.compute)
    predictions = answers["predictions"]
    spent = {record_key(record): record["multiply_adds"] for record in predictions if "multiply_adds" in record}
    shares = {key: value / dense[key] for key, value in spent.items() if key in dense}
    right = accuracy(plan, answers)
    per_input = run.variant.calibrated and not run.variant.policy.counts_fixed
    numbers: dict[str, Any] = {
        "accuracy": right,
        "questions": len(predictions),
        **_compute(run, compute, spent, dense),
        **_calibration(run),
        "collapsed": collapse(right, predictions, list(shares.values()), per_input),
        "train_seconds": next((marker["seconds"] for marker in markers if marker["name"] == "train"), None),
    }
    clocks = read_clocks(run)
    numbers |= clock_numbers(plan, run, clocks, dense_run)
    reason = "" if failure is None else f"no clock: {failure.reason}"
    return Result(run, name, DONE, reason, numbers, predictions, shares, clocks, commands)


def _compute(run: Run, compute: Mapping[str, Any], spent: Mapping[Any, float], dense: Mapping[Any, float]) -> dict[str, Any]:
    numbers = {
        "multiply_adds": compute["multiply_adds"],
        "multiply_adds_p05": compute["multiply_adds_p05"],
        "multiply_adds_p50": float(np.median(list(spent.values()))) / _MILLION if spent else None,
        "multiply_adds_p95": compute["multiply_adds_p95"],
        "dense_multiply_adds": compute["dense_multiply_adds"],
        "executed_multiply_adds": compute["executed_multiply_adds"],
        "speedup": compute["speedup"],
    }
    own = run.budget is None or run.variant.sliced  # a model of its own is held against the comparison's dense model
    if own and dense and spent.keys() == dense.keys():
        numbers["speedup"] = sum(dense.values()) / sum(spent.values())
    if run.budget is not None:
        numbers["speedup_error"] = numbers["speedup"] / run.budget - 1
    return numbers


def _calibration(run: Run) -> dict[str, Any]:
    if not run.variant.calibrated or not run.calibration.is_file():
        return {}
    note = _json(run.calibration)
    return {"knob": note["knob"], "knob_value": note["after"]["knob"], "held_out_speedup": note["after"]["speedup"]}


def _markers(run: Run) -> list[dict[str, Any]]:
    found = []
    for name in ("calibrate_start", "train", "calibrate", "slice", "test", "benchmark"):
        path = run.folder / "stages" / f"{name}.json"
        if path.is_file():
            try:
                found.append(_json(path))
            except ValueError:  # a damaged marker is as good as none
                continue
    return found


def _json(path: Path) -> Any:
    return _parsed(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=512)
def _parsed(path: Path, _: int) -> Any:
    content = json.loads(path.read_text(encoding="utf-8"))
    if path.name == "answers.json":  # of all runs at once: without what is not looked at, equal texts once
        for record in content["predictions"]:
            for name in _UNREAD:
                record.pop(name, None)
            for name, value in record.items():
                if isinstance(value, str):
                    record[name] = sys.intern(value)
    return content
