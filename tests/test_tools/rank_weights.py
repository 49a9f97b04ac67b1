"""A hook for tests: what every rank holds after training."""

from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from smarttrim_mm.registry import HOOKS


@HOOKS.register_module()
class RankWeightsHook(Hook):
    def after_train(self, runner) -> None:
        assert is_model_wrapper(runner.model)
        state = runner.model.module.state_dict()
        torch.save({**state, "draw": torch.rand(4)}, Path(runner.work_dir) / f"rank_{runner.rank}.weights")
