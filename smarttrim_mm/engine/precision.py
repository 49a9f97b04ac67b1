"""In which numbers a model is timed: its weights cast, or torch's autocast around each forward."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.policies.base import Policy


@dataclass(frozen=True)
class Precision:
    """Numbers of a forward.

    Attributes:
        dtype: Of the weights and images, or, with autocast, of what autocast multiplies.
        autocast: Whether weights stay fp32 and are cast at each use.
    """

    dtype: torch.dtype
    autocast: bool = False

    @property
    def _casts(self) -> bool:
        return not self.autocast and self.dtype != torch.float32

    def cast(self, module: nn.Module) -> None:
        """Casts the weights in place. Knobs of policies stay fp32: a threshold of 0.9995 would be 1 in bf16."""
        if not self._casts:
            return
        knobs = [(part, part.knob_value) for part in module.modules() if isinstance(part, Policy) and part.knob is not None]
        module.to(self.dtype)
        for part, value in knobs:
            part.knob_value = value

    def inputs(self, inputs: VLMInputs) -> VLMInputs:
        """The batch with images as the weights are."""
        return replace(inputs, images=inputs.images.to(self.dtype)) if self._casts else inputs

    def context(self, device: torch.device) -> AbstractContextManager:
        """What a forward runs in."""
        return torch.autocast(device.type, self.dtype) if self.autocast else nullcontext()


PRECISIONS = {
    "fp32": Precision(torch.float32),
    "bf16": Precision(torch.bfloat16),
    "fp16": Precision(torch.float16),
    "autocast-bf16": Precision(torch.bfloat16, autocast=True),
    "autocast-fp16": Precision(torch.float16, autocast=True),
}
