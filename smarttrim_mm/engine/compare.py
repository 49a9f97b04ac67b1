"""Trains, calibrates, tests and times many policies with the same recipe: what ``tools/compare.py`` does."""

import argparse
import fcntl
import os
import shlex
import signal
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import DictAction

from smarttrim_mm.engine.compare_earlier import earlier_notes, key_of, read_earlier, with_earlier
from smarttrim_mm.engine.compare_estimate import Estimate
from smarttrim_mm.engine.compare_execution import FAILED, LEFT_OUT, Execution, Task
from smarttrim_mm.engine.compare_pictures import draw_all
from smarttrim_mm.engine.compare_plan import DENSE, ComparePlan, plan_from, read_plan
from smarttrim_mm.engine.compare_results import read_results
from smarttrim_mm.engine.compare_runs import Run, checkpoint_notes, plan_runs
from smarttrim_mm.engine.compare_summary import Summary, summarise
from smarttrim_mm.engine.compare_tables import notes_of, write_tables
from smarttrim_mm.engine.compare_variants import differences, resolve
from smarttrim_mm.engine.progress import clock
from smarttrim_mm.engine.stages import Stage, StageError, shown_path

ROOT = Path(__file__).resolve().parents[2]
_WORK_DIR = "work_dirs/compare"


class Comparison:
    """A plan with everything that it makes.

    Args:
        plan: The plan.
        root: Folder that commands run in.
        tools: Folder of the tools.
        work_dir: Folder of the runs (``runs/``) of all plans, and of their results.
        smoke: Whether trainings are cut to a few iterations on a few images.
        command: That makes this comparison.
        only: Rows to run; None: all.
        earlier: Files ``results.csv`` of the same plan, whose runs are not run again.
    """

    def __init__(
        self,
        plan: ComparePlan,
        *,
        root: Path,
        tools: Path,
        work_dir: Path,
        smoke: bool,
        command: str,
        only: Sequence[str] | None = None,
        earlier: Sequence[str] = (),
    ) -> None:
        names = {row.name for row in (plan if only is None else plan.only(only)).rows}
        self.plan, self.root, self.tools, self.work_dir, self.command = plan, root, tools, work_dir, command
        self.results = work_dir / plan.name
        self.dense, self.variants = resolve(plan, root, work_dir / "runs", smoke)
        self.runs = plan_runs(plan, self.dense, self.variants, root)
        self.earlier = read_earlier(earlier, self.runs)
        self.chosen = self._to_run({DENSE, *names})
        self.notes = notes_of(self.variants, differences(self.variants))
        if plan.dense_checkpoint is not None:
            self.notes += checkpoint_notes(plan.dense_checkpoint, plan.seeds, self.dense, root)

    def _to_run(self, names: Container[str]) -> list[Run]:
        """The runs of some rows without earlier ones; with the dense model of each seed of which anything is run here."""
        own = {key_of(run) for run in self.runs if run.variant.name in names} - self.earlier.keys()
        needed = {(DENSE, None, seed) for _, _, seed in own}
        return [run for run in self.runs if key_of(run) in own | needed]

    def tasks(self) -> list[Task]:
        """Trainings, calibrations and tests; equal runs once."""
        unique = {run.folder: run for run in reversed(self.chosen)}  # under the first of several names
        return [
            Task(run.title, run.folder, tuple(run.stages()), None if run.needs is None else run.needs.folder)
            for run in reversed(unique.values())
        ]

    def clock_tasks(self) -> list[Task]:
        """The comparisons of clocks of the runs that are tested."""
        folders = {run.folder for run in self.chosen}
        tested = [result.run for result in read_results(self.plan, self.runs) if result.done]
        done = {run.folder: run for run in tested if run.folder in folders}
        timed = [run for run in done.values() if not run.variant.same_as_dense]
        if not all(run.variant.against_own_host for run in timed):  # the others need the dense model's own time
            timed = [run for run in done.values() if run.variant.name == DENSE] + timed
        return [Task(run.title, run.folder, (run.clock_stage(self.plan),)) for run in timed]

    def clocks_to_come(self) -> list[tuple[Path, Stage]]:
        """The comparisons of clocks that were never made, whether their runs are tested yet or not."""
        runs = {run.folder: run for run in self.chosen if not run.variant.same_as_dense and not run.clock.is_file()}
        return [(folder, run.clock_stage(self.plan)) for folder, run in runs.items()]

    def write(self) -> list[Summary]:
        """Writes the tables from what is there, and returns what they hold."""
        results = with_earlier(read_results(self.plan, self.runs), self.earlier)
        summaries = summarise(self.plan, results)
        notes = [*self.notes, *earlier_notes(results, self.earlier)]
        write_tables(self.results, self.plan, results, summaries, notes=notes, command=self.command)
        return summaries

    def draw(self) -> None:
        """Writes tables and figures from what is there, and says where they are."""
        for path in draw_all(self.results, self.plan, self.write()):
            print(f"figure: {shown_path(path, self.root)}")
        print(f"results: {shown_path(self.results / 'results.md', self.root)} (and results.csv, results.json)")


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/compare.py``."""
    parser = argparse.ArgumentParser(
        "compare.py",
        description="Train (or apply), calibrate, test and time policies with the same backbone, data, recipe, budgets and "
        "seeds; write results.csv, results.md, results.json and figures. If interrupted, the same command goes on; what is "
        "finished, in this plan or in another one of the same --work-dir, is not done again.",
        epilog="Either a plan file, such as configs/compare/easy-vqa_policies.py, or --dense and --rows.",
    )
    parser.add_argument("plan", nargs="?", help="config file of the comparison: dense, rows, budgets, seeds")
    what = parser.add_argument_group("what is compared (also changes what a plan file says)")
    what.add_argument("--dense", metavar="CONFIG", help="config of the dense model, without a plan file")
    what.add_argument("--rows", nargs="+", metavar="CONFIG", help="configs to compare, without a plan file")
    what.add_argument(
        "--dense-checkpoint", metavar="PATH", help="a file or the folder of a training, {seed} in it, instead of training it"
    )
    what.add_argument("--budgets", type=float, nargs="+", metavar="S", help="speed-ups, dense over decided multiply-adds")
    what.add_argument("--seeds", type=int, nargs="+", metavar="N", help="of trainings and of policies that draw")
    what.add_argument("--only", nargs="+", metavar="NAME", help="rows of the plan to run; the others keep their results")
    what.add_argument(
        "--earlier",
        nargs="+",
        metavar="FILE",
        default=[],
        help="results.csv of the same plan from another machine or work dir: "
        "what is done there is not run again, and its numbers stand in tables and figures",
    )
    what.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="change settings of all configs: a.b=1"
    )
    what.add_argument("--smoke", action="store_true", help="a few iterations on a few images, to see that everything runs")
    how = parser.add_argument_group("how")
    how.add_argument("--work-dir", metavar="DIR", help=f"folder of everything (default: {_WORK_DIR})")
    how.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time, sharing the cores; clocks run alone (default: 1)"
    )
    how.add_argument("--no-benchmark", action="store_true", help="compare no clocks: they want a quiet machine")
    how.add_argument("--tables-only", action="store_true", help="run nothing; write the tables and figures of what is there")
    how.add_argument("--dry-run", action="store_true", help="run nothing; say what would be run and for how long")
    how.add_argument("--group-by", metavar="FIELD", help="group the figure of kept compute by this field of the answers")
    return parser


def main(argv: Sequence[str] | None = None, tools: Path = ROOT / "tools", root: Path = ROOT) -> int:
    """What ``tools/compare.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.
        tools: Folder of the tools.
        root: Folder that commands run in.

    Returns:
        Exit status: 0, 1 if a run failed, 130 after an interrupt.

    Raises:
        ValueError: If the plan or an option does not fit.
        FileNotFoundError: If a config or the dense checkpoint is missing.
    """
    args = parser().parse_args(argv)
    command = shlex.join(["python", "tools/compare.py", *(sys.argv[1:] if argv is None else argv)])
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; expected at least 1")
    work_dir = Path(args.work_dir).absolute() if args.work_dir else root / _WORK_DIR
    plan = plan_of(args)
    given: dict[str, Any] = {
        "root": root,
        "tools": tools,
        "work_dir": work_dir,
        "smoke": args.smoke,
        "command": command,
        "only": args.only,
        "earlier": args.earlier,
    }
    try:
        comparison = Comparison(plan, **given)
    except StageError as error:
        raise FileNotFoundError(str(error)) from error
    if args.tables_only:
        comparison.draw()
        return 0
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that running tools are ended too
    try:
        with _alone(work_dir):
            return _run(comparison, args)
    except KeyboardInterrupt:
        print(f"\ninterrupted; to go on: {command}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, handler)


def plan_of(args: argparse.Namespace) -> ComparePlan:
    """The plan that a command line describes.

    Raises:
        ValueError: If it gives neither a plan file nor the dense model and rows, or both.
    """
    changes = {
        "budgets": None if args.budgets is None else tuple(args.budgets),
        "seeds": None if args.seeds is None else tuple(args.seeds),
        "dense_checkpoint": args.dense_checkpoint,
        "group_by": args.group_by,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if args.plan is not None:
        if args.dense is not None or args.rows is not None:
            raise ValueError(f"plan is {args.plan!r}, and --dense or --rows is given, which take its place; leave one out")
        plan = replace(read_plan(args.plan), **changes)
        if "budgets" in changes:  # of all rows
            rows = tuple(replace(row, budgets=None) for row in plan.rows)
            plan = replace(plan, rows=rows)
    else:
        if args.dense is None or args.rows is None:
            raise ValueError("there is nothing to compare; give a plan file, or --dense CONFIG and --rows CONFIG ...")
        given = [{"name": Path(path).stem, "config": path} for path in args.rows]
        plan = replace(plan_from({"name": Path(args.dense).stem, "dense": args.dense, "rows": given}), **changes)
    name = f"{plan.name}-smoke" if args.smoke else plan.name
    plan = replace(plan, name=name, options={**plan.options, **(args.cfg_options or {})})
    return replace(plan, benchmark=replace(plan.benchmark, rounds=2)) if args.smoke else plan


def _run(comparison: Comparison, args: argparse.Namespace) -> int:
    runs = {run.folder: run for run in comparison.runs}
    for variant in {run.variant.folder: run.variant for run in comparison.chosen}.values():
        variant.write_config()
    estimate = Estimate(comparison.work_dir / "runs", runs)
    where: dict[str, Any] = {"tools": comparison.tools, "root": comparison.root, "rerun": comparison.command}
    execution = Execution(**where, environment=_threads(args.jobs), left=estimate.left)
    tasks = comparison.tasks()
    pending = execution.pending(tasks)
    todo = [(folder, stage) for folder, stages in pending.items() for stage in stages]
    print(f"{comparison.plan.name}: {len(tasks)} runs, {len(pending)} of them to do ({len(todo)} stages)")
    if comparison.earlier:
        print(f"{len(comparison.earlier)} further runs are taken from earlier results")
    for note in comparison.notes:
        print(f"note: {note}")
    clocks = [] if args.no_benchmark else comparison.clocks_to_come()
    if todo or clocks:
        estimate.complete([*todo, *clocks])
        seconds = (estimate.left(todo) or 0.0) / args.jobs + (estimate.left(clocks) or 0.0)
        print(f"estimated time: {_hours(seconds)} with {args.jobs} at a time ({estimate.basis})")
    if args.dry_run:
        for folder, stages in pending.items():
            print(f"  {runs[folder].title}: {', '.join(stage.name for stage in stages)}")
        return 0

    def on_run(_: Task) -> None:
        comparison.write()

    comparison.write()
    execution.run(tasks, args.jobs, on_run)
    failures = dict(execution.failures)
    if not args.no_benchmark:
        alone = Execution(**where, left=estimate.left)
        alone.run(comparison.clock_tasks(), 1, on_run)
        failures |= alone.failures
    comparison.draw()
    failed = [failure for failure in failures.values() if failure.status in (FAILED, LEFT_OUT)]
    if failed:
        print(f"{len(failed)} runs failed; to go on: {comparison.command}", file=sys.stderr)
    return 1 if failed else 0


def _threads(jobs: int) -> dict[str, str]:
    """Variables that share the cores among the jobs."""
    return {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else clock(seconds)


@contextmanager
def _alone(work_dir: Path) -> Iterator[None]:
    """Holds a work dir, so that no two comparisons train the same run at once.

    Raises:
        ValueError: If another process holds it.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"--work-dir is {str(work_dir)!r}, and another comparison is running there; wait for it, or give another one"
            ) from None
        yield
