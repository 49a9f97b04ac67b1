"""Stops a training at the first value that is not finite, before a weight is touched by it."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from smarttrim_mm.registry import HOOKS
from smarttrim_mm.utils.checkpoint_io import newest_checkpoint
from smarttrim_mm.utils.finite import all_finite, broken_tensors, diagnose
from smarttrim_mm.utils.launch import unwrapped_model
from smarttrim_mm.utils.random_state import get_random_state, set_random_state


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Ends the run where a loss, a gradient or a weight is NaN or infinite, and says where it came from.

    Gradients are checked right before the optimiser would apply them, the loss after each step, weights before they are saved:
    so the newest checkpoint is always a good one. The step is then run once more, from the same weights, batch and random
    numbers, to find the first layer that is not finite. A step that the loss scaler of mixed precision skips is none of
    that: its gradients never reach the optimiser.

    It costs one norm over the gradients and the state of the random generators, each iteration.

    Raises:
        FloatingPointError: With the iteration, the losses, the layer, the newest checkpoint, and the command to go on.
    """

    priority = "HIGH"  # before anything is saved

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._batch: Any = None
        self._state: dict[str, Any] = {}
        self._losses: dict[str, Tensor] = {}
        self._stepped = False
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        self._runner = runner
        self._release()
        self._handles = [unwrapped_model(runner).register_forward_hook(self._note_losses)]
        if isinstance(runner.optim_wrapper, OptimWrapper):
            self._handles.append(runner.optim_wrapper.optimizer.register_step_pre_hook(self._check_gradients))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._batch, self._state, self._losses, self._stepped = data_batch, get_random_state(), {}, False

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        total = (outputs or {}).get("loss")
        broken = total is not None and not bool(total.isfinite())
        if get_world_size() > 1:
            # processes stop together: at a step (all have seen the gradients), or where the scaler skipped one for all
            if self._stepped or not runner.optim_wrapper.should_update():
                return
            flag = torch.tensor(float(broken), device=next(runner.model.parameters()).device)
            all_reduce(flag)
            broken = bool(flag > 0)
        if broken:
            self._stop("the loss is not finite")
        self._batch = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not all_finite(parameter.detach() for parameter in runner.model.parameters()):
            names = broken_tensors(dict(unwrapped_model(runner).named_parameters()))
            raise FloatingPointError(
                f"Training stops at iteration {runner.iter + 1}: {len(names)} weights are not finite, the first is {names[0]}, "
                f"and are not saved. {_advice(runner)}"
            )

    def after_train(self, runner: Runner) -> None:
        self._release()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _note_losses(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Mapping):
            self._losses = {name: value.detach() for name, value in output.items() if "loss" in name}

    def _check_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._stepped = True
        gradients = (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        if not all_finite(gradients):
            losses = torch.stack([value.mean() for value in self._losses.values()]) if self._losses else torch.zeros(1)
            self._stop("gradients are not finite" if bool(losses.isfinite().all()) else "the loss is not finite")

    def _stop(self, what: str) -> None:
        runner = self._runner
        assert runner is not None
        model: Any = unwrapped_model(runner)
        batch = self._batch
        set_random_state(self._state)

        def run() -> Mapping[str, Tensor]:
            with runner.optim_wrapper.optim_context(model):
                return model._run_forward(model.data_preprocessor(batch, True), mode="loss")

        listed = ", ".join(f"{name} {float(value.mean()):.4g}" for name, value in self._losses.items())
        self._release()  # the step that is run once more is not watched
        where = diagnose(model, run)
        raise FloatingPointError(f"Training stops at iteration {runner.iter + 1}: {what} ({listed}). {where} {_advice(runner)}")


def _advice(runner: Runner) -> str:
    newest = newest_checkpoint(runner.work_dir)
    config = runner.cfg.filename or "CONFIG"
    if newest is None:
        return "Nothing had been saved yet: lower the learning rate, or clip gradients (optim_wrapper.clip_grad); start again."
    return (
        f"The last good checkpoint is {newest}; go on from it with\n"
        f"    python tools/train.py {config} --resume {newest} --work-dir {runner.work_dir}\n"
        "It repeats the same numbers, and so the same end, unless the machine was at fault. Otherwise change what caused it in "
        "another --work-dir: a smaller optim_wrapper.clip_grad.max_norm, bfloat16 in place of float16, or, to lower the "
        "learning rate, a training that starts from it (load_from=) with a lower optim_wrapper.optimizer.lr."
    )
