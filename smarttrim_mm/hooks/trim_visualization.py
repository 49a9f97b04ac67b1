"""Pictures of what a model prunes, while it trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from torch import nn

from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.registry import HOOKS
from smarttrim_mm.utils.launch import unwrapped_model
from smarttrim_mm.utils.random_state import get_random_state, set_random_state
from smarttrim_mm.visualization.findings import gather
from smarttrim_mm.visualization.survey import Pair, Survey
from smarttrim_mm.visualization.trim_visualizer import TrimVisualizer


@HOOKS.register_module()
class TrimVisualizationHook(Hook):
    """Draws inputs after each validation and test, for every backend of the runner's ``TrimVisualizer``.

    The inputs are chosen at the first validation, spanning the cheap to the dear, and stay the same over the training, also
    when it is resumed. Only the main process draws, by itself: the others wait. The training is the same without the hook.

    Args:
        num: Inputs to draw.
        max_inputs: Inputs that are run for the distribution of compute, and to choose from: at least ``num``.
        seed: Chooses which.

    Raises:
        ValueError: If a number is out of its range.
        TypeError: Before the run, if the visualizer is no ``TrimVisualizer``, the model no ``TrimmedVLM``, or a data set has no
            records to choose from.
    """

    def __init__(self, num: int = 4, max_inputs: int = 256, seed: int = 0) -> None:
        if num < 1:
            raise ValueError(f"num is {num}; expected at least 1 input to draw")
        if max_inputs < num:
            raise ValueError(f"max_inputs is {max_inputs}; expected at least num={num} inputs to choose from")
        self.num = num
        self.max_inputs = max_inputs
        self.seed = seed

    def before_run(self, runner: Runner) -> None:
        if not isinstance(runner.visualizer, TrimVisualizer):
            raise TypeError(
                f"visualizer is a {type(runner.visualizer).__name__}; TrimVisualizationHook expects "
                "visualizer=dict(type='TrimVisualizer', vis_backends=[...]), or take the hook out"
            )
        model = unwrapped_model(runner)
        if not isinstance(model, TrimmedVLM):
            raise TypeError(f"the model is a {type(model).__name__}; TrimVisualizationHook expects a TrimmedVLM")

    def before_val(self, runner: Runner) -> None:
        self._check(runner.val_loop, "val")

    def before_test(self, runner: Runner) -> None:
        self._check(runner.test_loop, "test")

    def after_val(self, runner: Runner) -> None:
        self._draw(runner, runner.val_loop, "val")

    def after_test(self, runner: Runner) -> None:
        self._draw(runner, runner.test_loop, "test")

    def _check(self, loop: Any, mode: str) -> None:
        dataset = loop.dataloader.dataset
        if not callable(getattr(dataset, "get_data_info", None)):
            raise TypeError(
                f"{mode}_dataloader.dataset is a {type(dataset).__name__} without get_data_info; TrimVisualizationHook expects "
                "a data set of mmengine, whose records it can choose from, or take the hook out"
            )

    def _draw(self, runner: Runner, loop: Any, mode: str) -> None:
        if not is_main_process():
            return
        model = unwrapped_model(runner)
        assert isinstance(model, TrimmedVLM)
        key, info = f"drawn_{mode}_inputs", runner.message_hub.runtime_info

        def choose(survey: Survey) -> list[Pair]:
            if key not in info:
                runner.message_hub.update_info(key, [list(pair) for pair in survey.choose(self.num)])
            return [(int(item), int(question)) for item, question in info[key]]

        with _undisturbed(model), autocast(enabled=getattr(loop, "fp16", False)):
            findings = gather(model, loop.dataloader, choose, self.max_inputs, self.seed)
        runner.visualizer.add_findings(findings, runner.iter, f"{mode}_")


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module's mode and the random generators are as before."""
    modes = {module: module.training for module in model.modules()}
    state = get_random_state()
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        set_random_state(state)
