"""SmartTrim's token trimmers with as many tokens kept of every input: what deciding the number by the input is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.ops.gates import noisy, straight_through
from smarttrim_mm.policies.base import Knob
from smarttrim_mm.policies.ranked import dropped_share, keep_best
from smarttrim_mm.policies.smarttrim import SmartTrim
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Scores, Streams, TokenStream


@POLICIES.register_module()
class SmartTrimTopK(SmartTrim):
    """Keeps, at each trimmed place, the tokens of the highest scores, the same share of every input.

    An ablation of ours, which the paper does not have: the scores are those of SmartTrim's trimmers, learned by the same
    losses; how many tokens stay is fixed, so that no budget loss is needed. Of what comes to a place without the protected
    tokens, ``ceil(keep_ratio * n)`` stay. In training the scores carry SmartTrim's noise, and gradients go straight through to
    all of them; the share falls from 1 to its target with the curriculum. Heads run whole.

    Args:
        steps: The layers of the backbone.
        keep_ratio: Share kept at each trimmed place, in [0.001, 1]. Calibration sets it for a wanted speed-up.
        token_trimmer: Config of the token trimmer.
        streams: As of :class:`SmartTrim`.
        token_layers: Likewise.
        stable_init: Whether all tokens have one score at first; ties go to the earlier token.
        temperature: As of :class:`SmartTrim`.
        noise: Likewise.

    Raises:
        ValueError: As :class:`SmartTrim`, or if ``keep_ratio`` is outside [0.001, 1].
    """

    knob = Knob("dropped share per trimmed place", 0.0, 0.999)
    counts_fixed = True

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        keep_ratio: float = 1.0,
        token_trimmer: Mapping[str, Any] = {"type": "TokenTrimmer"},
        streams: Sequence[str] | None = None,
        token_layers: Mapping[str, Sequence[int]] | None = None,
        stable_init: bool = False,
        temperature: float = 1.0,
        noise: float = 1.0,
    ) -> None:
        super().__init__(
            steps=steps,
            token_trimmer=token_trimmer,
            head_trimmer=None,
            streams=streams,
            token_layers=token_layers,
            stable_init=stable_init,
            temperature=temperature,
            noise=noise,
        )
        self.set_knob(dropped_share(keep_ratio))

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "60% a layer": {"keep_ratio": 0.6}}

    def scores(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Scores:
        return replace(super().scores(step, streams, guides), threshold=None)

    def _gate_tokens(self, name: str, logits: Tensor, stream: TokenStream) -> Tensor:
        dropped = self.progress * self.knob_value
        if not self.training:
            return keep_best(stream.layout, logits, dropped)
        drawn = noisy(logits, self.noise)
        return straight_through(torch.sigmoid(drawn / self.temperature), keep_best(stream.layout, drawn, dropped))
