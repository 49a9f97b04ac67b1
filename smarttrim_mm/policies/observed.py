"""A policy that is watched: it decides as ever, and what it decides by is noted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from smarttrim_mm.layers.views import LayerStep, LayerView
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import Decision, Evidence, Layout, Scores, Streams


class Observed(Policy):
    """Asks another policy, and notes its scores; it is no plugin, it is made around a policy for one pass.

    The scores are computed a second time, so that a policy that nobody watches pays nothing.

    Args:
        policy: Decides.

    Attributes:
        noted: The scores of each step that was decided on, in the order of the record's; those of tokens are laid over the
            original positions, [B, N], NaN where there is no token any more.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(steps=())
        self.policy = policy
        self.noted: list[Scores] = []

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        scores = self.policy.scores(step, streams, guides)
        grids = {name: streams[name].layout.to_grid(values.float(), torch.nan) for name, values in scores.keep.items()}
        self.noted.append(Scores(grids, scores.heads, scores.threshold))
        return self.policy.before_layer(step, streams, guides)

    def layers_of(self, step: LayerStep) -> Mapping[str, LayerView]:
        return self.policy.layers_of(step)

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        return self.policy.trims(step)

    def reads(self, step: LayerStep) -> frozenset[str]:
        return self.policy.reads(step)

    def looks(self, step: LayerStep) -> Mapping[str, frozenset[str]]:
        return self.policy.looks(step)

    def reduces(self, step: LayerStep) -> frozenset[str]:
        return self.policy.reduces(step)

    def skips(self, step: LayerStep) -> frozenset[str]:
        return self.policy.skips(step)

    def least_tokens(self, stream: str, layout: Layout) -> Tensor:
        return self.policy.least_tokens(stream, layout)

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        return self.policy.after_attention(step, streams, evidence, guides)

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        return self.policy.multiply_adds(step, counts)
