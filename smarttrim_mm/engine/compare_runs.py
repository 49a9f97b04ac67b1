"""The runs of a comparison: one for each row, budget and seed, each a chain of stages in a folder of its own."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from smarttrim_mm.engine.compare_plan import ComparePlan
from smarttrim_mm.engine.compare_variants import Variant
from smarttrim_mm.engine.stages import Stage, StageError, shown_path
from smarttrim_mm.engine.tool_stages import Source, ToolStages, chosen_checkpoint
from smarttrim_mm.utils.run_guard import RECORD, differing_settings

_SHOWN = 6  # differing settings


@dataclass(frozen=True)
class Run:
    """One row at one budget and seed.

    Attributes:
        variant: The row with its settings.
        budget: The speed-up; None: its compute is whatever it is.
        seed: Of the training, the policy and the benchmark's draw.
        root: Folder that commands run in.
        margin: Share above the budget that is aimed at.
        dense: Gives the seed's dense checkpoint.
        trains: Whether it has a training of its own; else the dense checkpoint is used as it is.
        needs: The run that makes the dense checkpoint; None: it is there.
    """

    variant: Variant
    budget: float | None
    seed: int
    root: Path
    margin: float
    dense: Source
    trains: bool
    needs: "Run | None" = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        place = "fixed" if self.budget is None else f"budget-{self.budget:g}x"
        return self.variant.folder / place / f"seed-{self.seed}"

    @property
    def answers(self) -> Path:
        return self.folder / "tested" / "answers.json"

    @property
    def compute(self) -> Path:
        return self.folder / "tested" / "compute.json"

    @property
    def calibration(self) -> Path:
        return self.folder / "calibrated" / "calibration.json"

    @property
    def clock(self) -> Path:
        return self.folder / "benchmark.json"

    @property
    def title(self) -> str:
        at = "" if self.budget is None else f" at {self.budget:g}x"
        return f"{self.variant.name}{at}, seed {self.seed}"

    def weights(self) -> Path:
        """The checkpoint that is tested."""
        if self.variant.sliced:
            return self.folder / "sliced.pth"
        return self.folder / "calibrated.pth" if self.variant.calibrated else self.trained()

    def trained(self) -> Path:
        """The checkpoint of its training; of a row that is not trained, the dense one."""
        return chosen_checkpoint(self.folder / "train") if self.trains else self.dense()

    def stages(self) -> list[Stage]:
        """What is done, in its order, up to the test."""
        variant, tools = self.variant, ToolStages(self.variant.config, self.root)
        found = []
        start: Source | None = self.dense if variant.row.from_dense else None
        if variant.calibrated_first:
            found.append(self._calibrate("calibrate_start", self.dense, self.folder / "start.pth"))
            start = partial(_same, self.folder / "start.pth")
        if self.trains:
            found.append(
                tools.train(
                    "train",
                    f"{self.title}: train",
                    work_dir=self.folder / "train",
                    settings=variant.training_settings(),
                    options=self._training_options,
                    start=start,
                )
            )
        if variant.calibrated:
            found.append(self._calibrate("calibrate", self.trained, self.folder / "calibrated.pth"))
        if variant.sliced:
            title, settings = f"{self.title}: slice", variant.data_settings("test")
            found.append(tools.slice("slice", title, source=self.trained, out=self.weights(), settings=settings))
        found.append(
            tools.test(
                "test",
                f"{self.title}: test",
                source=self.weights,
                folder=self.folder / "tested",
                settings=variant.data_settings("test"),
                options=self._policy_options(),
            )
        )
        return found

    def clock_stage(self, plan: ComparePlan) -> Stage:
        """The comparison of clocks."""
        clock = plan.benchmark
        return ToolStages(self.variant.config, self.root).benchmark(
            "benchmark",
            f"{self.title}: compare clocks",
            source=self.weights,
            out=self.clock,
            batch_sizes=clock.batch_sizes,
            threads=clock.threads,
            seed=self.seed,
            settings=self.variant.data_settings("test"),
            rounds=clock.rounds,
            options=self._policy_options(),
        )

    def _calibrate(self, name: str, source: Source, out: Path) -> Stage:
        assert self.budget is not None
        when = " before the training" if name == "calibrate_start" else ""
        return ToolStages(self.variant.config, self.root).calibrate(
            name,
            f"{self.title}: calibrate{when}",
            source=source,
            out=out,
            speedup=self.budget,
            margin=self.margin,
            settings=self.variant.data_settings("val"),
            options=self._policy_options(),
        )

    def _policy_options(self) -> list[str]:
        return [f"model.policy.seed={self.seed}"] if self.variant.draws else []

    def _training_options(self) -> list[str]:
        options = [f"randomness.seed={self.seed}", *self._policy_options()]
        if self.variant.has_target:
            assert self.budget is not None
            options.append(f"model.budget.speedup={self.budget * (1 + self.margin):g}")
        names = self.variant.placeholders()
        return options + [f"{name}={shown_path(self.dense(), self.root)}" for name in names]


def plan_runs(plan: ComparePlan, dense: Variant, variants: Sequence[Variant], root: Path) -> list[Run]:
    """All runs: for each seed the dense model's, then each row's at each budget.

    Rows of equal settings have runs of equal folders.

    Args:
        plan: The plan.
        dense: The dense model's variant.
        variants: Those of the rows.
        root: Folder that commands run in.
    """
    runs = []
    for seed in plan.seeds:
        given = None if plan.dense_checkpoint is None else partial(given_checkpoint, plan.dense_checkpoint, seed, root)
        own = Run(dense, None, seed, root, plan.margin, given or _unknown, trains=given is None)
        runs.append(own)
        source = given or own.trained
        for variant in variants:
            needs = own if given is None and variant.source is not None else None
            budgets = (variant.row.budgets or plan.budgets) if variant.calibrated or variant.sliced else (None,)
            shared = (seed, root, plan.margin, source, variant.row.train, needs)
            runs += [Run(variant, budget, *shared) for budget in budgets]
    return runs


def given_checkpoint(template: str, seed: int, root: Path) -> Path:
    """A seed's dense checkpoint: a file, or what a training left in a folder.

    Raises:
        StageError: If there is none.
    """
    path = root / template.format(seed=seed)
    if path.is_dir():
        return chosen_checkpoint(path)
    if not path.is_file():
        raise StageError(f"dense_checkpoint is {template!r}, and {path} is neither a checkpoint nor the folder of a training")
    return path


def checkpoint_notes(template: str, seeds: Sequence[int], dense: Variant, root: Path) -> list[str]:
    """How the trainings of given dense checkpoints differ from the plan's dense config and seeds, as far as they tell.

    Args:
        template: The plan's ``dense_checkpoint``.
        seeds: Those of the plan.
        dense: The dense model's variant.
        root: Folder that the path refers to.
    """
    notes = []
    for seed in seeds:
        folder = given_checkpoint(template, seed, root).parent
        if not (folder / RECORD).is_file():
            continue
        held = json.loads((folder / RECORD).read_text(encoding="utf-8"))["settings"]
        own = {**dense.training_settings(), "randomness.seed": seed}
        tops = {name.partition(".")[0] for name in own}
        held = {name: value for name, value in held.items() if name.partition(".")[0] in tops and name != "load_from"}
        lines = differing_settings(own, held)[:_SHOWN]
        if lines:
            notes.append(f"the training in {shown_path(folder, root)} was not the plan's for seed {seed}: {'; '.join(lines)}.")
    return notes


def _same(path: Path) -> Path:
    return path


def _unknown() -> Path:
    raise StageError("the dense model starts from no checkpoint")
