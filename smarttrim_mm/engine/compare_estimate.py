"""How long a comparison will take: from finished stages of the same kind, else from a short probe."""

import copy
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from mmengine.config import Config

from smarttrim_mm.engine.building import build_loader, build_model, model_batches
from smarttrim_mm.engine.compare_runs import Run
from smarttrim_mm.engine.compare_variants import PLACEHOLDER
from smarttrim_mm.engine.stages import Stage

_STEPS = 4  # of a probe, the first of which is not counted
_START = 8.0  # seconds that a tool takes to start, roughly
_PASSES = 9  # of a calibration over the held-out data, usually
_CONTENDERS = 4  # of a benchmark
_ROUNDS = 64


@dataclass(frozen=True)
class Probe:
    """What a few steps of a model tell.

    Attributes:
        iteration: Seconds of one of training.
        batch: Seconds of one of inference.
        batches: Their number in a pass over each split.
    """

    iteration: float
    batch: float
    batches: Mapping[str, int]


class Estimate:
    """Estimates the seconds of stages.

    Args:
        folder: Of all runs, whose finished stages it learns from.
        runs: Runs by their folder.
    """

    def __init__(self, folder: Path, runs: Mapping[Path, Run]) -> None:
        self.folder = folder
        self.runs = runs
        self.probed: dict[bool, Probe] = {}  # of a model with a policy that trims, or without

    @property
    def basis(self) -> str:
        """What the estimate rests on, in words."""
        if not self.probed:
            return "from finished stages of the same kind"
        return f"from a probe of {_STEPS} steps of a model, and finished stages where there are any"

    def complete(self, todo: Sequence[tuple[Path, Stage]]) -> None:
        """Probes a dense and a trimmed model if there are stages whose kind has not been run yet.

        Args:
            todo: Pending stages, by the folder of their run.
        """
        history = self._history()
        for folder, stage in todo:
            run = self.runs[folder]
            if self._from_history(history, run, stage) is None and self._from_probe(run, stage) is None:
                self.probed[run.variant.calibrated] = probe(run.variant.cfg)

    def left(self, todo: Iterable[tuple[Path, Stage]]) -> float | None:
        """Seconds that pending stages take one after the other; None: not known.

        Args:
            todo: Pending stages, by the folder of their run.
        """
        history, total = self._history(), 0.0
        for folder, stage in todo:
            run = self.runs[folder]
            seconds = self._from_history(history, run, stage)
            if seconds is None:
                seconds = self._from_probe(run, stage)
            if seconds is None:
                return None
            total += seconds
        return total

    def _history(self) -> dict[tuple[str, str], list[float]]:
        """Seconds of finished stages by their name and the folder of their variant; of a training, of one iteration."""
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for path in self.folder.glob("*/*/*/stages/*.json"):
            try:
                marker = json.loads(path.read_text(encoding="utf-8"))
                if marker["status"] == "done":
                    length = _length(marker["settings"]) if marker["name"] == "train" else 1
                    found[marker["name"], path.parents[3].name].append(marker["seconds"] / length)
            except (ValueError, KeyError, TypeError):  # a damaged marker teaches nothing
                continue
        return found

    def _from_history(self, history: Mapping[tuple[str, str], list[float]], run: Run, stage: Stage) -> float | None:
        own = history.get((stage.name, run.variant.folder.name))
        same = own or [seconds for (name, _), values in history.items() if name == stage.name for seconds in values]
        if not same:
            return None
        return median(same) * (_length(run.variant.training_settings()) if stage.name == "train" else 1)

    def _from_probe(self, run: Run, stage: Stage) -> float | None:
        if stage.name == "slice":  # one pass over one batch
            return _START
        found = self.probed.get(run.variant.calibrated)
        if found is None:
            return None
        sizes = found.batches
        if stage.name == "train":
            loop = run.variant.cfg.train_cfg
            iterations = loop.get("max_iters") or loop.max_epochs * sizes["train"]
            validations = _length(run.variant.training_settings()) / (loop.get("val_interval") or 1)
            return _START + iterations * found.iteration + validations * sizes["val"] * found.batch
        if stage.name == "benchmark":
            return _START + _ROUNDS * _CONTENDERS * found.batch
        return _START + found.batch * (sizes["test"] if stage.name == "test" else _PASSES * sizes["val"])


def probe(cfg: Config) -> Probe:
    """Times a few steps of a config's model on its data.

    Args:
        cfg: The config.
    """
    cfg = without_teacher(cfg)
    model = build_model(cfg)
    by_epoch = "max_epochs" in cfg.train_cfg
    loaders = {split: build_loader(cfg, split, model) for split in ("val", "test", *(["train"] if by_epoch else []))}
    seconds = []
    for inputs in islice(model_batches(model, loaders["val"]), _STEPS):
        begin = time.monotonic()
        with torch.inference_mode():
            model.trace(inputs)
        between = time.monotonic()
        model.train()
        losses = [value.sum() for name, value in model.loss(inputs).items() if "loss" in name]
        torch.stack(losses).sum().backward()
        model.eval()
        seconds.append((time.monotonic() - between, between - begin))
    training, inference = (median(values) for values in zip(*(seconds[1:] or seconds), strict=True))
    return Probe(training, inference, {split: len(loader) for split, loader in loaders.items()})


def without_teacher(cfg: Config) -> Config:
    """The config with the dense pass of the model's own weights in place of a teacher that is yet to be trained."""
    cfg = copy.deepcopy(cfg)
    if (cfg.model.get("distillation") or {}).get("frozen_teacher") == PLACEHOLDER:
        cfg.model.distillation.update(frozen_teacher=None, teacher_backbone=None)
        cfg.model.init_layers = None
    return cfg


def _length(settings: Mapping[str, object]) -> int:
    """Iterations or epochs of a training."""
    value = settings.get("train_cfg.max_iters") or settings.get("train_cfg.max_epochs") or 1
    assert isinstance(value, int)
    return value
