"""Hooks that move a quantity of the model while it trains."""

from abc import abstractmethod
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from smarttrim_mm.ops.schedules import check_schedule, schedule, window_progress
from smarttrim_mm.registry import HOOKS
from smarttrim_mm.utils.launch import unwrapped_model


class ScheduleHook(Hook):
    """Applies a value that is a function of the iteration, so that a resumed run goes on exactly.

    It is applied before each training iteration and each validation inside training, and its final value after training
    and wherever no training is running.

    Args:
        schedule: ``linear``, ``cosine``, ``exponential``, ``step`` or ``constant`` (the final value from the start).
        begin: Where the movement starts, a fraction of the training's iterations.
        end: Where the final value is reached, likewise.
        steps: Number of stairs of ``step``.
        rate: Sharpness of ``exponential``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    log_name: str

    def __init__(
        self, *, schedule: str = "linear", begin: float = 0.0, end: float = 1.0, steps: int = 4, rate: float = 5.0
    ) -> None:
        check_schedule(schedule, steps=steps, rate=rate)
        window_progress(0.0, begin, end)
        self.schedule = schedule
        self.begin = begin
        self.end = end
        self.steps = steps
        self.rate = rate
        self._training = False

    def progress(self, iteration: int, max_iters: int) -> float:
        """Progress of the quantity at an iteration (0 is the first), 0-1."""
        window = window_progress(min(iteration / max_iters, 1.0), self.begin, self.end)
        return schedule(self.schedule, window, steps=self.steps, rate=self.rate)

    @abstractmethod
    def apply(self, model: nn.Module, progress: float) -> float:
        """Moves the quantity of the unwrapped model to ``progress`` (0-1) and returns the value to log."""

    def check(self, model: nn.Module) -> None:
        """Raises a ValueError if the unwrapped model lacks what is to be moved."""

    def before_train(self, runner: Runner) -> None:
        self.check(unwrapped_model(runner))
        self._training = True
        self._apply_current(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        runner.message_hub.update_scalar(f"train/{self.log_name}", self._apply_current(runner))

    def before_val(self, runner: Runner) -> None:
        self._apply_current(runner)

    def before_test(self, runner: Runner) -> None:
        self._apply_current(runner)

    def after_train(self, runner: Runner) -> None:
        self._training = False
        self._apply_current(runner)

    def _apply_current(self, runner: Runner) -> float:
        progress = self.progress(runner.iter, runner.max_iters) if self._training else 1.0
        return self.apply(unwrapped_model(runner), progress)


@HOOKS.register_module()
class CurriculumHook(ScheduleHook):
    """Moves the budget from "keep everything" to its final target.

    Calls the model's ``set_curriculum(progress)``: 0 keeps everything, 1 is the final target.

    Args:
        schedule: ``linear``, ``cosine``, ``exponential``, ``step`` or ``constant`` (the final target from the start).
        begin: Where the target starts to fall, a fraction of the training's iterations.
        end: Where it arrives, likewise.
        steps: Number of stairs of ``step``.
        rate: Sharpness of ``exponential``.
    """

    log_name = "curriculum"

    def __init__(
        self, schedule: str = "linear", begin: float = 0.0, end: float = 0.7, steps: int = 4, rate: float = 5.0
    ) -> None:
        super().__init__(schedule=schedule, begin=begin, end=end, steps=steps, rate=rate)

    def check(self, model: nn.Module) -> None:
        if not callable(getattr(model, "set_curriculum", None)):
            raise ValueError(
                f"CurriculumHook needs a model with set_curriculum(progress), and {type(model).__name__} has none; "
                "remove the hook from custom_hooks or train a TrimmedVLM"
            )

    def apply(self, model: nn.Module, progress: float) -> float:
        self.check(model)
        model.set_curriculum(progress)  # type: ignore[operator]
        return progress


@HOOKS.register_module()
class RampUpHook(ScheduleHook):
    """Moves the share that momentum copies have in the contrastive targets of LAVIS's retrieval, from 0 to its ``alpha``.

    Args:
        end: Where ``alpha`` is reached, a fraction of the training's iterations; LAVIS's is two epochs.
    """

    log_name = "ramp_up"

    def __init__(self, end: float) -> None:
        super().__init__(end=end)

    def check(self, model: nn.Module) -> None:
        backbone = getattr(model, "backbone", None)
        if not hasattr(backbone, "ramp_up"):
            raise ValueError(
                f"RampUpHook needs a backbone with momentum targets, and {type(backbone).__name__} has none; remove the hook "
                "from custom_hooks, or train an arch of LAVIS's retrieval"
            )

    def apply(self, model: nn.Module, progress: float) -> float:
        self.check(model)
        model.backbone.ramp_up = progress  # type: ignore[union-attr]
        return progress


class GateHook(ScheduleHook):
    """Base of the hooks that move a number of the policy's Gumbel-softmax gates.

    Args:
        start: Value at the first iteration.
        end: Value at the end of the movement.
        schedule: ``linear``, ``cosine``, ``exponential``, ``step`` or ``constant`` (``end`` from the start).
        until: Where ``end`` is reached, a fraction of the training's iterations.
        steps: Number of stairs of ``step``.
        rate: Sharpness of ``exponential``.

    Raises:
        ValueError: If a setting is out of its range, or before training if the policy has no such number.
    """

    attribute: str
    least: float

    def __init__(
        self, start: float, end: float, schedule: str = "linear", until: float = 1.0, steps: int = 4, rate: float = 5.0
    ) -> None:
        super().__init__(schedule=schedule, end=until, steps=steps, rate=rate)
        for name, value in (("start", start), ("end", end)):
            if not value >= self.least:
                raise ValueError(f"{name} is {value}; expected a {self.attribute} of at least {self.least}")
        self.log_name = self.attribute
        self.first = start
        self.last = end

    def check(self, model: nn.Module) -> None:
        policy = getattr(model, "policy", None)
        if not hasattr(policy, self.attribute):
            owner = type(model).__name__ if policy is None else type(policy).__name__
            raise ValueError(
                f"{type(self).__name__} needs a policy with a {self.attribute}, and {owner} has none; "
                "remove the hook from custom_hooks or choose a policy with Gumbel gates (SmartTrim)"
            )

    def apply(self, model: nn.Module, progress: float) -> float:
        value = self.last if progress == 1.0 else self.first + (self.last - self.first) * progress
        policy = getattr(model, "policy", None)
        if hasattr(policy, self.attribute):  # at inference a policy may do without: it draws no noise
            setattr(policy, self.attribute, value)
        return value


@HOOKS.register_module()
class TemperatureHook(GateHook):
    """Moves the temperature of the gates' gradients."""

    attribute = "temperature"
    least = 1e-3


@HOOKS.register_module()
class NoiseHook(GateHook):
    """Moves the scale of the gates' noise, from sampled decisions (1) to those of inference (0)."""

    attribute = "noise"
    least = 0.0
