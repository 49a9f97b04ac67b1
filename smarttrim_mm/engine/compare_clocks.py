"""What the benchmarks of a comparison's runs measured, as times over the dense model's."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from smarttrim_mm.engine.compare_plan import ComparePlan
from smarttrim_mm.engine.compare_runs import Run
from smarttrim_mm.engine.contenders import HOST


def read_clocks(run: Run) -> list[dict[str, Any]]:
    """What the benchmark measured of a run's model, for each number of threads and batch size; nothing if it was not run.

    ``speedup`` of a policy that trims is over its host's dense forward (with SDPA where it can be had), in the same process.

    Args:
        run: The run.
    """
    if not run.clock.is_file():
        return []
    content = json.loads(run.clock.read_text(encoding="utf-8"))
    found = []
    for result in content["results"]:
        baseline = result["sdpa_baseline"] or HOST
        own = result["contenders"][content["policy"] if run.variant.timed_itself else baseline]
        found.append(
            {
                "batch_size": result["batch_size"],
                "threads": result["threads"],
                "rounds": result["rounds"],
                "baseline": baseline,
                "speedup": own["speedup"] if own["speedup_over_sdpa"] is None else own["speedup_over_sdpa"],
                "ms_per_batch": own["ms_per_batch"],
                "load_average": content["load_average"],
            }
        )
    return found


def clock_numbers(plan: ComparePlan, run: Run, clocks: Sequence[Mapping[str, Any]], dense: Run) -> dict[str, Any]:
    """The columns of the clock, at the largest batch size and the first number of threads.

    Of a sliced model and of one of another backbone, whose own dense forward is no baseline, it is the ratio of milliseconds
    per batch of two processes, the dense model's and its own.

    Args:
        plan: The plan.
        run: The run.
        clocks: As :func:`read_clocks` gives them.
        dense: The run of the dense model of this seed.
    """
    size, threads = max(plan.benchmark.batch_sizes), plan.benchmark.threads[0]
    shown = {"clock_batch_size": size, "clock_threads": threads}
    if run.variant.same_as_dense:
        return {"clock_speedup": 1.0, "clock_time": 1.0, **shown}
    own = _at(clocks, size, threads)
    if own is None:
        return {}
    if run.variant.against_own_host:
        ratio = own["speedup"]
        faster = {"clock_speedup": ratio["median"], "clock_q1": ratio["q1"], "clock_q3": ratio["q3"]}
    else:
        whole = _at(read_clocks(dense), size, threads)
        if whole is None:
            return {}
        faster = {"clock_speedup": whole["ms_per_batch"]["median"] / own["ms_per_batch"]["median"]}
    return {**faster, "clock_time": 1 / faster["clock_speedup"], **shown}


def _at(clocks: Sequence[Mapping[str, Any]], size: int, threads: int) -> Mapping[str, Any] | None:
    return next((each for each in clocks if (each["batch_size"], each["threads"]) == (size, threads)), None)
