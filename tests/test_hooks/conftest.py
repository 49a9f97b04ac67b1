"""A model of three weights that draws from every generator, and runs of it with the package's default hooks."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset

from smarttrim_mm.registry import DATASETS, METRICS, MODELS

DEFAULT_RUNTIME = Path(__file__).parents[2] / "configs" / "_base_" / "default_runtime.py"


class ToyPolicy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.temperature = 5.0


@MODELS.register_module()
class ToyVLM(BaseModel):
    """Its loss depends on the data, the curriculum, the temperature and the noise of three generators."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)
        self.policy = ToyPolicy()
        self.progress = 1.0
        self.seen: list[tuple] = []

    def set_curriculum(self, progress: float) -> None:
        self.progress = progress

    def forward(self, inputs, mode: str = "tensor"):
        x = torch.stack(list(inputs)).float() if isinstance(inputs, list | tuple) else inputs.float()
        if mode == "predict":
            self.seen.append(("val", self.progress, self.policy.temperature))
            return [{"score": value.item()} for value in self.linear(x)]
        self.seen.append(("train", self.progress, self.policy.temperature))
        noise = torch.randn(()) + np.random.rand() + random.random()
        loss = (self.linear(x) * self.policy.scale + 0.01 * noise + self.progress / self.policy.temperature).square().mean()
        kept = {"kept/image.0/image": torch.tensor(1.0), "kept/image.1/image": torch.tensor(0.97)}
        return {"loss_task": loss, "heads/image.1/image.self": torch.tensor(0.98), **kept}


@DATASETS.register_module()
class ToyData(Dataset):
    """Eight items, each with noise of numpy's global generator, as a random transform would add it."""

    metainfo = {"classes": ("yes", "no"), "sizes": np.float32(3.0)}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        return {"inputs": torch.tensor([float(index), np.random.rand()])}


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """A score that improves at every validation."""

    default_prefix = "toy"

    def process(self, data_batch, data_samples) -> None:
        torch.rand(1)  # a validation that draws must not change the training
        self.results.append(1)

    def compute_metrics(self, results: list) -> dict:
        self.rounds = getattr(self, "rounds", 0) + 1
        return {"acc": float(self.rounds), "matrix": np.eye(2), "kept/image.0/image": 1.0, "kept/image.1/image": 0.9}


@pytest.fixture
def toy_config(tmp_path: Path) -> Callable[..., Config]:
    def build(name: str = "run", **changes) -> Config:
        cfg = Config.fromfile(DEFAULT_RUNTIME)
        loader = {"batch_size": 2, "num_workers": 0, "dataset": {"type": "ToyData"}}
        cfg.merge_from_dict(
            {
                "work_dir": str(tmp_path / name),
                "model": {"type": "ToyVLM"},
                "train_dataloader": {**loader, "sampler": {"type": "InfiniteSampler"}},
                "val_dataloader": {**loader, "sampler": {"type": "DefaultSampler", "shuffle": False}},
                "val_evaluator": {"type": "ToyMetric"},
                "val_cfg": {"type": "ValLoop"},
                "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 8, "val_interval": 4},
                "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 0.1}},
                "param_scheduler": [
                    {"type": "MultiStepLR", "by_epoch": False, "milestones": [3, 3, 6]},
                    {"type": "CosineAnnealingLR", "by_epoch": False, "T_max": 8},
                ],
                "custom_hooks": [
                    {"type": "CurriculumHook", "end": 0.75},
                    {"type": "TemperatureHook", "start": 5.0, "end": 1.0, "schedule": "exponential"},
                ],
                "default_hooks.checkpoint.interval": 4,
                "default_hooks.logger.interval": 1,
                "experiment_name": f"{tmp_path.name}_{name}",
                "log_level": "WARNING",
                **changes,
            }
        )
        return cfg

    return build


@pytest.fixture
def toy_run(toy_config) -> Callable[..., Runner]:
    def run(name: str = "run", **changes) -> Runner:
        runner = Runner.from_cfg(toy_config(name, **changes))
        runner.train()
        return runner

    return run


@pytest.fixture(autouse=True)
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Runner would ask compilers for their versions, for half a second."""
    monkeypatch.setattr("mmengine.runner.runner.collect_env", dict)
