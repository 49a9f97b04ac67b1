"""Rows of a comparison over their seeds: means, spreads, paired differences, and which lie on the Pareto front."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from statistics import fmean, stdev

from smarttrim_mm.engine.compare_plan import DENSE, ComparePlan
from smarttrim_mm.engine.compare_results import Result, judged
from smarttrim_mm.engine.comparison import Comparison, compare_seeds


@dataclass(frozen=True)
class Spread:
    """Some numbers.

    Attributes:
        mean: Their mean.
        deviation: Their standard deviation (of a sample); nan of fewer than two.
        values: The numbers.
    """

    mean: float
    deviation: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None of no numbers."""
        if not values:
            return None
        return cls(fmean(values), stdev(values) if len(values) > 1 else nan, tuple(values))


@dataclass(frozen=True)
class Summary:
    """A row at one budget.

    Attributes:
        name: Of the row.
        budget: The budget; None: its compute is whatever it is.
        results: Of the seeds of the plan, in their order.
        against_dense: Paired with the dense model of the same seeds; None: not comparable, or nothing to compare.
        against_first: Paired with the plan's first row at this budget, likewise.
        fronts: Axes (``'multiply_adds'``, ``'clock'``) on whose Pareto front it lies.
    """

    name: str
    budget: float | None
    results: tuple[Result, ...]
    against_dense: Comparison | None = None
    against_first: Comparison | None = None
    fronts: frozenset[str] = field(default=frozenset())

    @property
    def done(self) -> list[Result]:
        return [result for result in self.results if result.done]

    def spread(self, column: str) -> Spread | None:
        """A column of the table over the seeds that have it."""
        values = [result.numbers.get(column) for result in self.done]
        return Spread.of([float(value) for value in values if value is not None])

    def mean(self, column: str) -> float | None:
        """The mean of a column over the seeds that have it."""
        found = self.spread(column)
        return None if found is None else found.mean


def summarise(plan: ComparePlan, results: Sequence[Result]) -> list[Summary]:
    """Summaries in the order of the plan: the dense model, then row by row, budget by budget.

    Args:
        plan: The plan.
        results: Of all runs.
    """
    grouped: dict[tuple[str, float | None], list[Result]] = {}
    for name in (DENSE, *(row.name for row in plan.rows)):
        for result in results:
            if result.name == name:
                grouped.setdefault((name, result.run.budget), []).append(result)
    first = plan.rows[0].name
    dense = grouped[DENSE, None]
    found = []
    for (name, budget), own in grouped.items():
        leaders = grouped.get((first, budget), [])
        found.append(
            Summary(
                name,
                budget,
                tuple(own),
                None if name == DENSE else paired(own, dense),
                None if name in (DENSE, first) else paired(own, leaders),
            )
        )
    return with_fronts(found)


def paired(first: Sequence[Result], second: Sequence[Result]) -> Comparison | None:
    """The paired comparison over the seeds that both have; None: none, or the answers cannot be told right from wrong.

    Earlier results, of which no answers are at hand, take no part.
    """
    others = {result.run.seed: result for result in second if result.done and not result.source}
    here = [result for result in first if result.done and not result.source]
    both = [(result, others[result.run.seed]) for result in here if result.run.seed in others]
    pairs = [(one.predictions, other.predictions) for one, other in both]
    if not pairs or not all(judged(one) and judged(other) for one, other in pairs):
        return None
    return compare_seeds(pairs)


def with_fronts(summaries: Sequence[Summary]) -> list[Summary]:
    """Marks what no other row beats in accuracy without being dearer, on each axis.

    Accuracies are held against the dense model's of the same seeds, so that rows of which other seeds are done compare.

    Args:
        summaries: All of a comparison.
    """
    axes: Mapping[str, Callable[[Summary], float | None]] = {
        "multiply_adds": lambda each: each.mean("multiply_adds"),
        "clock": lambda each: each.mean("clock_time"),
    }
    on: dict[int, set[str]] = {number: set() for number in range(len(summaries))}
    for axis, cost in axes.items():
        points = {n: (cost(each), _above(beside_dense(each, summaries))) for n, each in enumerate(summaries)}
        known = {n: (c, a) for n, (c, a) in points.items() if c is not None and a is not None}
        for number in pareto_front(known):
            on[number].add(axis)
    return [
        Summary(each.name, each.budget, each.results, each.against_dense, each.against_first, frozenset(on[number]))
        for number, each in enumerate(summaries)
    ]


def beside_dense(summary: Summary, summaries: Sequence[Summary]) -> list[tuple[Result, Result]]:
    """Of each seed that both have, a row's result and the dense model's.

    Args:
        summary: The row.
        summaries: All of the comparison.
    """
    dense = {result.run.seed: result for each in summaries if each.name == DENSE for result in each.done}
    return [(result, dense[result.run.seed]) for result in summary.done if result.run.seed in dense]


def _above(pairs: Sequence[tuple[Result, Result]]) -> float | None:
    """Mean difference in accuracy; None of no pairs."""
    return fmean(one.numbers["accuracy"] - other.numbers["accuracy"] for one, other in pairs) if pairs else None


def pareto_front(points: Mapping[int, tuple[float, float]]) -> list[int]:
    """Keys of the points (cost, value) that no other beats: at most its cost, at least its value, one of them better."""

    def beaten(key: int) -> bool:
        cost, value = points[key]
        return any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points.values())

    return [key for key in points if not beaten(key)]
