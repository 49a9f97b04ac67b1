"""Keeps a random share of the tokens: what any learned choice has to beat."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.ops.ranking import hash_uniform, keep_top
from smarttrim_mm.policies.base import Knob, Policy, check_streams, chosen_steps, cuts_so_far
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Streams


@POLICIES.register_module()
class Random(Policy):
    """Keeps, before each chosen layer, the same share of the real tokens, drawn at random.

    The draw depends on the sample, the step and the token alone: it is the same in any batch, in training and at inference.
    The kept count at a step that has ``i`` chosen steps of the stream up to and including itself is
    ``ceil(keep_ratio ** i * N)``, so that tokens fall away geometrically with depth; protected tokens come first.

    Args:
        steps: The layers of the backbone.
        keep_ratio: Share kept at each chosen step, in (0, 1]. Calibration sets it for a wanted speed-up.
        streams: Streams that are cut, memories too; ``'image'`` stands for ``'image0'`` and ``'image1'`` as well;
            None: image and text, those that there are.
        layers: Per stage, the layer indices at which tokens are dropped; stages left out: every layer.
        seed: Changes the draw.

    Raises:
        ValueError: If ``keep_ratio`` is outside (0, 1], or a stream, stage or layer is unknown.
    """

    knob = Knob("drop ratio per layer", 0.0, 0.999)
    counts_fixed = True

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        keep_ratio: float = 1.0,
        streams: Sequence[str] | None = None,
        layers: Mapping[str, Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(steps=steps)
        if not 0 < keep_ratio <= 1:
            raise ValueError(f"keep_ratio is {keep_ratio}; expected a number in (0, 1], 1 keeps every token")
        self.set_knob(1 - keep_ratio)
        self.seed = seed
        streams = check_streams(steps, streams)
        self.depth = cuts_so_far(steps, streams, chosen_steps(steps, layers, "layers"))
        self.number = {step.name: number for number, step in enumerate(steps)}

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "70% a layer": {"keep_ratio": 0.7}}

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        keep_ratio = 1 - self.progress * self.get_knob()
        keep = {}
        for name, stream in streams.items():
            depth = self.depth.get((step.name, name))
            if depth is None:
                continue
            layout = stream.layout
            seed = 1000 * self.seed + self.number[step.name]
            scores = hash_uniform(layout.per_token(layout.ids), layout.positions(), seed)
            scores = scores.expand(stream.x.shape[:-1]).masked_fill(layout.protected, 2.0)
            counts = torch.ceil(layout.full() * keep_ratio**depth - 1e-4).long()  # 1e-4: float error is no extra token
            keep[name] = layout.from_grid(keep_top(layout.to_grid(scores, -torch.inf), counts))
        return Decision(keep=keep)

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(name for name in step.streams() if (step.name, name) in self.depth), frozenset()

    def reads(self, step: LayerStep) -> frozenset[str]:
        return frozenset()
