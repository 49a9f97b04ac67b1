"""What every policy is: asked before each layer, it says which tokens and heads stay. It never touches a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.structures import Decision, Streams


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
    """

    knob: Knob | None = None
    knob_value: Tensor

    def __init__(self, *, steps: Sequence[LayerStep]) -> None:
        super().__init__()
        self.progress = 1.0
        if self.knob is not None:
            self.register_buffer("knob_value", torch.tensor(float(self.knob.low)))

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

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the streams and of the attentions that the policy may cut in this step."""
        return frozenset(), frozenset()

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
