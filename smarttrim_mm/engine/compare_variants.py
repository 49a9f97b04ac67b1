"""From a row of a plan to the settings that it is run with, and to the folder that these settings own."""

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from smarttrim_mm.engine.compare_plan import DENSE, ComparePlan, RowPlan
from smarttrim_mm.engine.tool_stages import SMOKE_TEST, SMOKE_TRAIN
from smarttrim_mm.hooks.schedule import GateHook
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.policies.dense import Dense
from smarttrim_mm.registry import HOOKS, POLICIES
from smarttrim_mm.utils.checkpoint_io import write_atomically
from smarttrim_mm.utils.config import read_config
from smarttrim_mm.utils.run_guard import comparable_settings

CONFIG = "config.py"
PLACEHOLDER = "{dense_checkpoint}"
_SPEEDUP = "model.budget.speedup"
_RUNNER = {*inspect.signature(Runner.__init__).parameters, "custom_imports", "model_wrapper_cfg"}  # not helper variables
_BY_RUN = ("randomness.seed", "load_from", "model.policy.seed", _SPEEDUP)  # a run gives them on its command line


@dataclass(frozen=True)
class Variant:
    """A row with its settings.

    Attributes:
        row: The row.
        cfg: Its whole config.
        policy: Class of its policy.
        folder: Folder of its runs, named after the settings.
        source: What the dense checkpoints that it starts from are known by; None: it uses none.
        notes: What was left out of the recipe for it.
        backbone_of_dense: Whether its backbone is the dense model's, setting for setting.
    """

    row: RowPlan
    cfg: Config
    policy: type[Policy]
    folder: Path
    source: str | None
    notes: tuple[str, ...] = field(default=())
    backbone_of_dense: bool = True

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def config(self) -> Path:
        """The file that its commands name."""
        return self.folder / CONFIG

    @property
    def calibrated(self) -> bool:
        """Whether it is brought to a budget."""
        return self.policy.knob is not None and not self.row.fixed

    @property
    def calibrated_first(self) -> bool:
        """Whether it is calibrated before the training too."""
        first = self.policy.counts_fixed if self.row.calibrate_first is None else self.row.calibrate_first
        return first and self.calibrated and self.row.train and self.row.from_dense

    @property
    def sliced(self) -> bool:
        """Whether what its training chose is sliced off afterwards: its budget is that of the search."""
        return self.policy.searches and self.row.train and not self.row.fixed

    @property
    def same_as_dense(self) -> bool:
        """Whether it computes what the comparison's dense model does, with other weights."""
        return self.policy is Dense and self.backbone_of_dense

    @property
    def timed_itself(self) -> bool:
        """Whether the policy is what the benchmark times, not the host that is left of it."""
        return self.policy is not Dense and not self.sliced

    @property
    def against_own_host(self) -> bool:
        """Whether its host, beside which the benchmark times it, computes what the comparison's dense model does."""
        return self.timed_itself and self.backbone_of_dense

    @property
    def has_target(self) -> bool:
        """Whether its training has a target in multiply-adds, which the budget sets."""
        budget = self.cfg.model.get("budget")
        return (self.calibrated or self.sliced) and budget is not None and "speedup" in budget

    @property
    def draws(self) -> bool:
        """Whether the policy draws at random by a seed of its own."""
        return "seed" in inspect.signature(self.policy.__init__).parameters

    def training_settings(self) -> dict[str, Any]:
        """What the result of a training depends on, beside what a run sets."""
        return {name: value for name, value in comparable_settings(self.cfg).items() if name not in _BY_RUN}

    def data_settings(self, split: str) -> dict[str, Any]:
        """What a calibration or a test of given weights depends on."""
        kept = {key: self.cfg.get(key) for key in ("data_preprocessor", f"{split}_dataloader", f"{split}_evaluator")}
        model = {key: value for key, value in self.cfg.model.items() if key not in ("budget", "distillation", "task_loss")}
        return json.loads(json.dumps({"model": model, **kept}, default=str))

    def placeholders(self) -> list[str]:
        """Names of the settings that the dense checkpoint goes to."""
        return [name for name, value in self.training_settings().items() if value == PLACEHOLDER]

    def write_config(self) -> None:
        """Writes the whole config to where the commands look for it."""
        text = self.cfg.pretty_text.encode()
        if not self.config.is_file() or self.config.read_bytes() != text:
            write_atomically(self.config, text)


def resolve(plan: ComparePlan, root: Path, runs: Path, smoke: bool = False) -> tuple[Variant, list[Variant]]:
    """The dense model's variant, and those of the rows.

    Args:
        plan: The plan.
        root: Folder that its paths refer to.
        runs: Folder of all runs.
        smoke: Whether trainings are cut to a few iterations on a few images.

    Raises:
        FileNotFoundError: If a config is missing.
        ValueError: If a config has no model or policy, or an option names what cannot be set.
        KeyError: If a policy is unknown.
    """
    options = {**plan.options, **(_smoke_options() if smoke else {})}
    row = RowPlan(name=DENSE, config=plan.dense, fixed=True, from_dense=False)
    cfg = _read(root, plan.dense, options, {}, row.name)
    dense = _variant(row, cfg, runs, source=None, plan=plan)
    if plan.dense_checkpoint is not None:
        dense = _variant(row, cfg, runs, source=plan.dense_checkpoint, plan=plan)
    source = plan.dense_checkpoint or dense.folder.name.rpartition("-")[2]
    rows = []
    folders: dict[str, Path] = {}  # of rows of other names in this plan
    for each in plan.rows:
        variant = _resolve_row(plan, each, root, runs, options, source)
        folder = folders.setdefault(variant.folder.name.rpartition("-")[2], variant.folder)
        same = variant.cfg.model.backbone == dense.cfg.model.backbone
        rows.append(replace(variant, folder=folder, backbone_of_dense=same))
    return dense, rows


def differences(variants: list[Variant]) -> dict[str, list[str]]:
    """Where the recipe of a trained row differs from that of the first one, beyond policy, budget, hooks and its own options.

    Args:
        variants: Those of the rows.

    Returns:
        Names of settings by the row's name; rows without differences are left out.
    """
    trained = [variant for variant in variants if variant.row.train]
    if not trained:
        return {}
    first = _recipe(trained[0])
    found = {}
    for variant in trained[1:]:
        own = _recipe(variant)
        declared = tuple(variant.row.options)  # what the row itself says is no surprise
        names = sorted(
            name for name in own.keys() | first.keys() if own.get(name) != first.get(name) and not name.startswith(declared)
        )
        if names:
            found[variant.name] = names
    return found


def _recipe(variant: Variant) -> dict[str, Any]:
    own = ("model.policy.", "model.budget", "custom_hooks")
    return {name: value for name, value in variant.training_settings().items() if not name.startswith(own)}


def _resolve_row(plan: ComparePlan, row: RowPlan, root: Path, runs: Path, options: Mapping[str, Any], source: str) -> Variant:
    notes: list[str] = []
    if row.policy is None:
        assert row.config is not None
        cfg = _read(root, row.config, options, row.options, row.name)
    else:
        assert plan.recipe is not None
        cfg = _read(root, plan.recipe, options, {}, row.name)
        notes = _with_policy(cfg, row.policy)
        cfg = _changed(cfg, row.options, row.name)
    uses_dense = row.from_dense or PLACEHOLDER in comparable_settings(cfg).values()
    variant = _variant(row, cfg, runs, source=source if uses_dense else None, plan=plan, notes=notes)
    if variant.sliced and not variant.has_target:
        raise ValueError(
            f"row {row.name!r} searches for what to slice off, and its model.budget is {cfg.model.get('budget')}, so that "
            "nothing would ever go; expected a SlicingBudget: give the row a config such as configs/meter/quickstart_upop-2x.py"
        )
    return variant


def _variant(
    row: RowPlan, cfg: Config, runs: Path, *, source: str | None, plan: ComparePlan, notes: list[str] | None = None
) -> Variant:
    cfg = Config({name: value for name, value in cfg.to_dict().items() if name in _RUNNER}, filename=cfg.filename)
    if "policy" not in cfg.get("model", {}):
        raise ValueError(f"config of row {row.name!r} has no model.policy; give the config of a TrimmedVLM")
    policy = POLICIES.get(cfg.model.policy.type)
    unnamed = Variant(row, cfg, policy, runs, source, tuple(notes or ()))
    content = {
        "settings": unnamed.training_settings(),
        "source": source,
        "train": row.train,
        "from_dense": row.from_dense,
        "calibrated": [unnamed.calibrated_first, plan.margin] if unnamed.calibrated else None,
    }
    name = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]
    held = sorted(runs.glob(f"*-{name}"))  # of a row of another name in another plan
    folder = held[0] if held else runs / f"{_slug(row.name)}-{name}"
    return Variant(row, cfg, policy, folder, source, tuple(notes or ()))


def _with_policy(cfg: Config, policy: Mapping[str, Any]) -> list[str]:
    """Puts a policy in the place of the recipe's; returns what was left out of the recipe as it does not fit."""
    cls = POLICIES.get(policy["type"])
    cfg.model.policy = ConfigDict(policy)
    notes = []
    if cfg.model.get("budget") is not None and (cls.counts_fixed or cls.knob is None):
        notes.append(f"no {cfg.model.budget.type}: what {cls.__name__} keeps is not learned")
        cfg.model.budget = None
    hooks = []
    for hook in cfg.get("custom_hooks") or []:
        kind = HOOKS.get(hook["type"]) if isinstance(hook["type"], str) else hook["type"]
        if issubclass(kind, GateHook) and not _has(cls, kind.attribute):
            notes.append(f"no {kind.__name__}: {cls.__name__} has no {kind.attribute}")
        else:
            hooks.append(hook)
    cfg.custom_hooks = hooks
    return notes


def _has(policy: type[Policy], attribute: str) -> bool:
    return hasattr(policy, attribute) or attribute in inspect.signature(policy.__init__).parameters


def _read(root: Path, path: str, shared: Mapping[str, Any], own: Mapping[str, Any], name: str) -> Config:
    return _changed(read_config(str(root / path)), {**shared, **own}, name)


def _changed(cfg: Config, options: Mapping[str, Any], name: str) -> Config:
    try:
        cfg.merge_from_dict(dict(options))
    except (KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"options of row {name!r}, {dict(options)}, cannot be set in its config: {error}") from error
    return cfg


def _smoke_options() -> dict[str, Any]:
    return dict(_pairs())


def _pairs() -> Iterator[tuple[str, Any]]:
    for option in (*SMOKE_TRAIN, *SMOKE_TEST):
        name, _, value = option.partition("=")
        yield name, None if value == "None" else int(value)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "row"
