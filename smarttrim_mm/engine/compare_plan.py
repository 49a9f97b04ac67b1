"""What is compared with what: the plan of a comparison, from a config file or from a command line."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

DENSE = "dense"  # the row of the dense model
MARGIN = 0.04  # on other images the ratio moves by a per cent or two


@dataclass(frozen=True)
class RowPlan:
    """One row of the comparison.

    Attributes:
        name: In tables and figures.
        config: Config file of the model and its training; None: the plan's ``recipe`` with ``policy``.
        policy: The policy's config, in place of a config file.
        options: Changes of the config, by dotted name. ``{dense_checkpoint}`` stands for the seed's dense checkpoint.
        budgets: Budgets of this row; None: those of the plan.
        train: Whether it is trained; else the policy is applied to the dense checkpoint as it is.
        fixed: Whether its compute is whatever it is, so that it has no budget and is not calibrated.
        from_dense: Whether its training starts from the dense checkpoint; else from what its config says.
        calibrate_first: Whether the policy is calibrated before the training too; None: if its counts are fixed.
    """

    name: str
    config: str | None = None
    policy: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    budgets: tuple[float, ...] | None = None
    train: bool = True
    fixed: bool = False
    from_dense: bool = True
    calibrate_first: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"name of a row is {self.name!r}; expected a few words, such as 'SmartTrim'")
        if (self.config is None) == (self.policy is None):
            given = "both a config and a policy" if self.config is not None else "neither a config nor a policy"
            raise ValueError(
                f"row {self.name!r} has {given}; expected one of them: config='configs/...' or policy=dict(type=...)"
            )
        if self.policy is not None and "type" not in self.policy:
            raise ValueError(f"policy of row {self.name!r} is {dict(self.policy)}; expected dict(type=..., ...)")
        if self.budgets is not None:
            if self.fixed:
                raise ValueError(f"row {self.name!r} has budgets {list(self.budgets)}, but it is fixed; leave one of them out")
            check_budgets(self.budgets, f"budgets of row {self.name!r}")
        if not self.train and not self.from_dense:
            raise ValueError(f"row {self.name!r} has train=False and from_dense=False: there are no weights; leave one out")


@dataclass(frozen=True)
class ClockPlan:
    """How clocks are compared.

    Attributes:
        batch_sizes: Pairs of a batch; the largest is shown in tables and figures.
        threads: Threads of torch; the first is shown.
        rounds: Timed batches of each; None: the benchmark's own number.
    """

    batch_sizes: tuple[int, ...] = (32,)
    threads: tuple[int, ...] = (1,)
    rounds: int | None = None

    def __post_init__(self) -> None:
        for name, values in (("batch_sizes", self.batch_sizes), ("threads", self.threads), ("rounds", [self.rounds or 1])):
            if not values or any(not isinstance(value, int) or value < 1 for value in values):
                raise ValueError(f"benchmark.{name} is {values}; expected whole numbers of at least 1")


@dataclass(frozen=True)
class ComparePlan:
    """A whole comparison.

    Attributes:
        name: Of its folder of results.
        dense: Config of the dense model: the backbone, the data and how it is trained.
        rows: What is compared, the first being what the others are compared with, besides the dense model.
        budgets: Speed-ups, dense over decided multiply-adds.
        seeds: Of trainings, of policies that draw, and of the benchmark's draw.
        dense_checkpoint: A file, or the folder of a training, in place of training the dense model; with ``{seed}`` in it.
        recipe: Config whose data, schedule and losses train rows that give a policy only.
        options: Changes of all configs, by dotted name.
        margin: Share above a budget that trainings and calibrations aim at.
        benchmark: How clocks are compared.
        metric: Name of the accuracy among the metrics of a test, such as ``'vqa/accuracy'``; None: the share of right answers.
        group_by: Field of the answers by which the figure of kept compute groups; None: it does not.
    """

    name: str
    dense: str
    rows: tuple[RowPlan, ...]
    budgets: tuple[float, ...] = (2.0,)
    seeds: tuple[int, ...] = (0,)
    dense_checkpoint: str | None = None
    recipe: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    margin: float = MARGIN
    benchmark: ClockPlan = field(default_factory=ClockPlan)
    metric: str | None = None
    group_by: str | None = None

    def __post_init__(self) -> None:
        check_budgets(self.budgets, "budgets")
        if not self.seeds or any(not isinstance(seed, int) or seed < 0 for seed in self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}; expected whole numbers of at least 0, such as [0, 1, 2]")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin is {self.margin}; expected a share in [0, 1), such as {MARGIN}")
        for what, values in (("seeds", self.seeds), ("budgets", self.budgets), ("names of rows", [r.name for r in self.rows])):
            twice = sorted({str(value) for value in values if list(values).count(value) > 1})
            if twice:
                raise ValueError(f"{what} holds {', '.join(twice)} more than once; give each once")
        if any(row.name == DENSE for row in self.rows):
            raise ValueError(f"a row is named {DENSE!r}, which is the name of the dense model's; give it another")
        without = [row.name for row in self.rows if row.policy is not None]
        if without and self.recipe is None:
            raise ValueError(
                f"row {without[0]!r} gives a policy only, and the plan has no recipe; set recipe to a config with data, "
                "schedule and losses, such as configs/meter/quickstart_smarttrim.py"
            )

    def only(self, names: Sequence[str]) -> "ComparePlan":
        """The plan with some of its rows.

        Raises:
            ValueError: If it has no row of one of the names.
        """
        known = [row.name for row in self.rows]
        for name in names:
            if name not in known:
                raise ValueError(f"no row is named {name!r}; {_nearest(name, known)}")
        return replace(self, rows=tuple(row for row in self.rows if row.name in names))


def read_plan(path: str | Path) -> ComparePlan:
    """Reads a plan from a config file. Its helper variables begin with an underscore.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a setting is unknown, missing or out of range.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"plan {str(path)!r}: no such file; see configs/compare/")
    content = {name: value for name, value in Config.fromfile(path).to_dict().items() if not name.startswith("_")}
    content.setdefault("name", Path(path).stem)
    return plan_from(content)


def plan_from(content: Mapping[str, Any]) -> ComparePlan:
    """Makes a plan of plain data.

    Args:
        content: Attributes of :class:`ComparePlan`; rows are dicts of attributes of :class:`RowPlan`.

    Raises:
        ValueError: If a setting is unknown, missing or out of range.
    """
    settings = _known(ComparePlan, content, "the plan")
    for name in ("name", "dense", "rows"):
        if not settings.get(name):
            raise ValueError(f"the plan has no {name}; expected dense='configs/...' and rows=[dict(name=..., config=...), ...]")
    settings["rows"] = tuple(_row(number, row) for number, row in enumerate(settings["rows"]))
    for name in ("budgets", "seeds"):
        if name in settings:
            settings[name] = tuple(settings[name])
    if "benchmark" in settings:
        clock = _known(ClockPlan, settings["benchmark"], "benchmark")
        for name in ("batch_sizes", "threads"):
            if name in clock:
                clock[name] = tuple(clock[name])
        settings["benchmark"] = ClockPlan(**clock)
    return ComparePlan(**settings)


def check_budgets(budgets: Iterable[float], name: str) -> None:
    """Refuses budgets that are no speed-ups.

    Raises:
        ValueError: If there are none, or one is not above 1.
    """
    values = list(budgets)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 1:
            raise ValueError(f"{name} holds {value}; expected speed-ups above 1, such as 2.0 for half of the multiply-adds")
    if not values:
        raise ValueError(f"{name} is empty; expected speed-ups above 1, such as [1.5, 2.0, 3.0]")


def _row(number: int, content: Any) -> RowPlan:
    if not isinstance(content, Mapping):
        raise ValueError(f"row {number} is {content!r}; expected dict(name=..., config=...)")
    settings = _known(RowPlan, content, f"row {content.get('name', number)!r}")
    if "name" not in settings:
        raise ValueError(f"row {number} has no name; expected dict(name=..., config=...)")
    if settings.get("budgets") is not None:
        settings["budgets"] = tuple(settings["budgets"])
    return RowPlan(**settings)


def _known(cls: type, content: Mapping[str, Any], what: str) -> dict[str, Any]:
    known = [each.name for each in fields(cls)]
    for name in content:
        if name not in known:
            raise ValueError(f"{what} has a setting {name!r}; {_nearest(name, known)}")
    return dict(content)


def _nearest(name: str, known: Sequence[str]) -> str:
    lower = {each.lower(): each for each in known}
    near = [lower[each] for each in difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.4)]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}There are {', '.join(map(repr, known))}"
