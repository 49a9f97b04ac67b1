"""From the files of a quickstart to its findings: every number is measured, every sentence follows from numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from smarttrim_mm.engine.comparison import Comparison, compare
from smarttrim_mm.engine.contenders import HOST, PACKED
from smarttrim_mm.engine.machine import in_words

DENSE_ACCURACY = 0.88  # wanted of the dense model
ACCURACY_LOSS = 1.0  # points that trimming may cost
CLOCK = (32, 1.3)  # batch size, and how many times faster
UNKNOWN_LONGER = (
    "SmartTrim's fine-tuning is training too: what the dense model gains from as many iterations more was not measured "
    "(--longer does)."
)
_POINT = 100
_EQUAL_COMPUTE = 0.03  # share by which speed-ups may differ and count as equal


@dataclass(frozen=True)
class Row:
    """What is known of one tested model.

    Attributes:
        title: Its name in text.
        config: Config it was tested with.
        checkpoint: Checkpoint likewise.
        predictions: As ``tools/test.py --out`` writes them.
        compute: As ``tools/test.py --speedup-report`` writes it.
        calibration: Knob and held-out speed-up, where it was calibrated.
    """

    title: str
    config: str
    checkpoint: str
    predictions: Sequence[Mapping[str, Any]]
    compute: Mapping[str, Any]
    calibration: Mapping[str, Any] | None = None

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0-1."""
        return sum(p["predicted_answer"] == p["answer"] for p in self.predictions) / len(self.predictions)

    @property
    def speedup(self) -> float:
        """Mean dense over mean decided multiply-adds."""
        return self.compute["speedup"]


def build_report(
    rows: Mapping[str, Row],
    *,
    benchmark: Mapping[str, Any],
    speedup: float,
    seeds: Mapping[str, int],
    stages: Sequence[Mapping[str, Any]],
    pictures: Sequence[str],
    smoke: bool = False,
) -> dict[str, Any]:
    """Makes the report.

    Args:
        rows: Tested models by name: ``dense``, ``smarttrim``, ``dense-pass`` (SmartTrim's weights run densely), perhaps
            ``dense-longer`` (the dense model trained on), and baselines.
        benchmark: What ``tools/benchmark.py --out`` wrote about SmartTrim.
        speedup: What was calibrated to.
        seeds: By what they seed.
        stages: ``name``, ``title``, ``command``, ``seconds`` of each.
        pictures: Their paths.
        smoke: Whether nothing was really trained.

    Returns:
        JSON data.
    """
    dense, trimmed, dense_pass = rows["dense"], rows["smarttrim"], rows["dense-pass"]
    against_dense = {name: _compare(row, dense) for name, row in rows.items() if name != "dense"}
    baselines = {name: row for name, row in rows.items() if name not in ("dense", "dense-longer", "smarttrim", "dense-pass")}
    longer = rows.get("dense-longer")
    against_trimmed = {name: _compare(row, trimmed) for name, row in baselines.items()}
    trimming = _compare(trimmed, dense_pass)
    findings = [
        accuracy_sentence(trimmed, dense, against_dense["smarttrim"]),
        compute_sentence(trimmed),
        *(clock_sentence(result, benchmark["policy"]) for result in benchmark["results"]),
        *overhead_sentences(benchmark),
        *(baseline_sentence(row, trimmed, against_trimmed[name]) for name, row in baselines.items()),
        longer_sentence(longer, trimmed, _compare(trimmed, longer)) if longer else UNKNOWN_LONGER,
        dense_pass_sentence(dense_pass, trimmed, trimming),
    ]
    return {
        "smoke": smoke,
        "units": "multiply-adds in M per unshared image-question pair; accuracy and kept ratios in 0-1; clock: speed over "
        "that of the host model's own dense forward",
        "models": {name: _model(row) for name, row in rows.items()},
        "against_dense": {name: _numbers(found) for name, found in against_dense.items()},
        "against_smarttrim": {name: _numbers(found) for name, found in against_trimmed.items()},
        "smarttrim_against_its_dense_pass": _numbers(trimming),
        "clock": benchmark["results"],
        "targets": targets(dense, trimmed, benchmark, speedup),
        "findings": findings,
        "seeds": dict(seeds),
        "pictures": list(pictures),
        "stages": [dict(stage) for stage in stages],
        "seconds": sum(stage["seconds"] for stage in stages),
        "machine": benchmark["machine"],
        "load_average": benchmark["load_average"],
    }


def targets(dense: Row, trimmed: Row, benchmark: Mapping[str, Any], speedup: float) -> list[dict[str, Any]]:
    """What the quickstart is meant to reach, and whether it did."""
    loss = round((dense.accuracy - trimmed.accuracy) * _POINT, 9)  # so that a point is a point
    found = [
        ("accuracy of the dense model", ">=", DENSE_ACCURACY, dense.accuracy),
        ("accuracy lost by SmartTrim, points", "<=", ACCURACY_LOSS, loss),
        ("whole-model dense / trimmed multiply-adds", ">=", speedup, trimmed.speedup),
    ]
    size, wanted = CLOCK
    result = next((result for result in benchmark["results"] if result["batch_size"] == size), None)
    if result is not None:
        faster = result["contenders"][benchmark["policy"]]["speedup"]["median"]
        found.append((f"times faster on the clock at batch {size}, {in_words(result['threads'])}", ">=", wanted, faster))
    return [
        {
            "what": what,
            "wanted": f"{relation} {limit:g}",
            "measured": measured,
            "reached": measured >= limit if relation == ">=" else measured <= limit,
        }
        for what, relation, limit, measured in found
    ]


def accuracy_sentence(trimmed: Row, dense: Row, found: Comparison) -> str:
    """SmartTrim's accuracy beside the dense model's."""
    return (
        f"{trimmed.title} answers {trimmed.accuracy:.2%} of {found.questions} test questions right, the dense model "
        f"{dense.accuracy:.2%}: {_points(found, 'the dense model')}."
    )


def compute_sentence(trimmed: Row) -> str:
    """What an instance costs, and how that spreads."""
    mean, low, high = (trimmed.compute[f"multiply_adds{suffix}"] for suffix in ("", "_p05", "_p95"))
    dense = trimmed.compute["dense_multiply_adds"]
    return (
        f"A pair costs it {mean:.2f} M multiply-adds in the mean, its trimmers included ({low:.2f} at the 5th percentile, "
        f"{high:.2f} at the 95th), against {dense:.2f} M dense: a whole-model ratio of {trimmed.speedup:.3f}."
    )


def clock_sentence(result: Mapping[str, Any], policy: str) -> str:
    """The clock at one batch size."""
    row, packed = result["contenders"][policy], result["contenders"][PACKED]
    faster, alone = row["speedup"], packed["speedup"]["median"]
    ratio = result["dense_multiply_adds"] / row["decided_multiply_adds"]
    middle = f"middle half of {result['rounds']} rounds {faster['q1']:.2f}-{faster['q3']:.2f}"
    return (
        f"At batch {result['batch_size']} on {in_words(result['threads'])} {policy} is {_faster(faster['median'])} the host "
        f"model's own dense forward ({middle}), with {ratio:.2f} times fewer multiply-adds on the same pairs; packed but "
        f"untrimmed the model runs at {alone:.2f}x."
    )


def overhead_sentences(benchmark: Mapping[str, Any]) -> list[str]:
    """Says so if a batch of one is bound by something else than arithmetic."""
    results = [result for result in benchmark["results"] if result["threads"] == benchmark["results"][0]["threads"]]
    times = {
        result["batch_size"]: result["contenders"][HOST]["ms_per_batch"]["median"] / result["batch_size"] for result in results
    }
    largest = max(times)
    if 1 not in times or largest == 1 or times[1] < 2 * times[largest]:
        return []
    return [
        f"A pair takes the dense model {times[1]:.2f} ms at batch 1 and {times[largest]:.2f} ms at batch {largest}: at batch 1 "
        f"{1 - times[largest] / times[1]:.0%} of the time is overhead that a batch shares, and that trimming does not save."
    ]


def baseline_sentence(row: Row, trimmed: Row, found: Comparison) -> str:
    """A baseline beside SmartTrim."""
    gap = row.speedup / trimmed.speedup - 1
    compute = "at equal compute" if abs(gap) <= _EQUAL_COMPUTE else "NOT at equal compute"
    name = row.title[0].upper() + row.title[1:]
    return (
        f"{name}, {compute} ({row.speedup:.3f}x against {trimmed.speedup:.3f}x): {row.accuracy:.2%}, "
        f"{_points(found, trimmed.title)}."
    )


def longer_sentence(longer: Row, trimmed: Row, found: Comparison) -> str:
    """SmartTrim beside a dense model that was trained for as many iterations in all."""
    return (
        f"SmartTrim's fine-tuning is training too: the {longer.title}, reaches {longer.accuracy:.2%}, and {trimmed.title} is "
        f"{_points(found, 'it')}."
    )


def dense_pass_sentence(dense_pass: Row, trimmed: Row, trimming: Comparison) -> str:
    """What the fine-tuned weights do when nothing is trimmed."""
    return (
        f"With nothing left out, {trimmed.title}'s weights answer {dense_pass.accuracy:.2%}: they have adapted to what is kept "
        f"(trimmed, they are {_points(trimming, 'that')})."
    )


def _points(found: Comparison, other: str) -> str:
    points = found.difference * _POINT
    size = f"{abs(points):.2f} points {'above' if points > 0 else 'below'}" if round(points, 2) else "as good as"
    error = f"two standard errors of the paired difference are {2 * found.standard_error * _POINT:.2f} points"
    verdict = "they tie" if found.ties else ("it is better" if points > 0 else "it is worse")
    return f"{size} {other}; {error}, so {verdict}"


def _faster(ratio: float) -> str:
    return f"{ratio:.2f}x as fast as" if ratio >= 1 else f"slower ({ratio:.2f}x) than"


def _compare(first: Row, second: Row) -> Comparison:
    return compare(first.predictions, second.predictions)


def _model(row: Row) -> dict[str, Any]:
    compute = row.compute
    return {
        "title": row.title,
        "config": row.config,
        "checkpoint": row.checkpoint,
        "questions": len(row.predictions),
        "accuracy": row.accuracy,
        "multiply_adds": {
            "mean": compute["multiply_adds"],
            "p05": compute["multiply_adds_p05"],
            "p95": compute["multiply_adds_p95"],
            "dense": compute["dense_multiply_adds"],
        },
        "speedup": compute["speedup"],
        "kept": dict(compute["kept"]),
        "heads": dict(compute["heads"]),
        "calibration": None if row.calibration is None else dict(row.calibration),
    }


def _numbers(found: Comparison) -> dict[str, Any]:
    return {**asdict(found), "ties": found.ties}
