"""What every policy is: asked before each layer, it says which tokens and heads stay. It never touches a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smarttrim_mm.layers.views import LayerStep, modality
from smarttrim_mm.structures import Decision, Scores, Streams


@dataclass(frozen=True)
class Knob:
    """The one number of a policy that trades compute for accuracy after training; calibration bisects it.

    Attributes:
        name: For messages.
        low: The value that keeps most.
        high: The value that keeps least.
    """

    name: str
    low: float
    high: float


class Policy(nn.Module):
    """Base of all policies.

    A subclass overrides :meth:`before_layer`, and :meth:`trims` and :meth:`multiply_adds` to match. Decisions must not depend
    on the other instances of the batch.

    Args:
        steps: The layers of the backbone, in order of execution: their streams, widths, attentions and heads.

    Attributes:
        knob: The knob's name and range; None: the policy's compute is fixed.
        counts_fixed: Whether the knob alone says how many tokens stay, whatever the weights are. Such a policy is calibrated
            before it is trained too, so that it trains at its budget.
    """

    knob: Knob | None = None
    counts_fixed: bool = False
    knob_value: Tensor

    def __init__(self, *, steps: Sequence[LayerStep]) -> None:
        super().__init__()
        self.progress = 1.0
        if self.knob is not None:
            self.register_buffer("knob_value", torch.tensor(float(self.knob.low)))

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        """Configs by name, without the type, that show what the policy can do; the contract tests run every one."""
        return {"default": {}}

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        """Decides what stays, before any layer of the step runs.

        Args:
            step: The step.
            streams: Its streams, all padded or all packed.
            guides: Guide tokens of ``step.guides``, [B, D] each.

        Returns:
            The decision.
        """
        return Decision()

    def scores(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Scores:
        """What :meth:`before_layer` decides by, for pictures; arguments as there. Nothing, unless a policy says so."""
        return Scores()

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the streams and of the attentions that the policy may cut in this step."""
        return frozenset(), frozenset()

    def reads(self, step: LayerStep) -> frozenset[str]:
        """Names of the streams outside the step (``step.guides``) whose guide token the policy wants.

        Where such a stream would run for the policy alone, it runs only if it is wanted.
        """
        return frozenset(step.guides) if any(self.trims(step)) else frozenset()

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        """The policy's own compute in a step.

        Args:
            step: The step.
            counts: Tokens of each stream that are there to be scored, [B] each.

        Returns:
            Multiply-adds per instance, [B].
        """
        return 0.0

    def set_curriculum(self, progress: float) -> None:
        """Moves the policy between keeping everything (0) and its final strength (1)."""
        self.progress = progress

    def get_knob(self) -> float:
        """The knob's value.

        Raises:
            ValueError: If the policy has no knob.
        """
        self._require_knob()
        return float(self.knob_value)

    def set_knob(self, value: float) -> None:
        """Sets the knob; it is saved with the checkpoint.

        Raises:
            ValueError: If the policy has no knob, or the value is outside its range.
        """
        knob = self._require_knob()
        low, high = sorted((knob.low, knob.high))
        if not low <= value <= high:
            raise ValueError(f"{knob.name} of {type(self).__name__} is {value}; expected a number in [{low}, {high}]")
        self.knob_value.fill_(value)

    def _require_knob(self) -> Knob:
        if self.knob is None:
            raise ValueError(f"{type(self).__name__} has no calibration knob: its compute is fixed. Calibrate another policy.")
        return self.knob


def check_streams(steps: Sequence[LayerStep], streams: Sequence[str] | None) -> tuple[str, ...]:
    """The streams that a config names, or, where it names none, image and text as far as the backbone has them.

    Args:
        steps: The layers of the backbone.
        streams: The config's; None: none.

    Raises:
        ValueError: If the backbone has none of one of the named streams.
    """
    known = {kind for step in steps for name in step.streams() for kind in (name, modality(name))}
    if streams is None:
        return tuple(name for name in ("image", "text") if name in known)
    unknown = sorted(set(streams) - known)
    if unknown:
        raise ValueError(f"streams holds {unknown}; this backbone has {sorted(known)}")
    return tuple(streams)


def is_chosen(stream: str, streams: Sequence[str]) -> bool:
    """Whether a stream is among those that a config names, by its name or by its modality."""
    return stream in streams or modality(stream) in streams


def chosen_steps(steps: Sequence[LayerStep], layers: Mapping[str, Sequence[int]] | None, argument: str) -> set[str]:
    """Names of the steps that a config chooses.

    Args:
        steps: The layers of the backbone.
        layers: Per stage, the layer indices that are chosen; stages left out: every layer; None: every layer of all.
        argument: Name of the config's argument, for messages.

    Raises:
        ValueError: If it names an unknown stage or layer.
    """
    known: dict[str, set[int]] = {}
    for step in steps:
        known.setdefault(step.stage, set()).add(step.index)
    for stage, indices in (layers or {}).items():
        if stage not in known:
            raise ValueError(f"{argument} names stage {stage!r}; this backbone has {sorted(known)}")
        beyond = sorted(set(indices) - known[stage])
        if beyond:
            raise ValueError(f"{argument} names layers {beyond} of stage {stage!r}, which has layers 0 to {max(known[stage])}")
    return {step.name for step in steps if layers is None or step.index in layers.get(step.stage, (step.index,))}
