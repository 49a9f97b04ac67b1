"""FastV (Chen et al., ECCV 2024, arXiv 2403.06764): after an early layer, image tokens that little attends to are dropped."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smarttrim_mm.layers.evidence import RECEIVED, looking_multiply_adds
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.policies.base import Knob, Policy
from smarttrim_mm.policies.ranked import dropped_share, encoder_layers, keep_best, readers
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Evidence, Streams


@POLICIES.register_module()
class FastV(Policy):
    """Drops once, in an early layer, the image tokens that receive least attention; nothing is trained.

    The score of a token is the attention that it receives from all that attends to it, on average over heads and asking tokens.
    The paper prunes a language model that reads image and text as one sequence: after layer ``K`` (most often 2,
    counted from 1), it drops the share ``R`` (most often 50 %) of the image tokens that scores least.

    What maps to what here is ours: layer ``K`` of the language model is layer ``K`` of the image encoder, where most of
    an encoder model's compute lies, or of any stage that ``layers`` names. "All other tokens" are those of every attention
    of that layer that reads the image: the image's own in the image encoder; in a fusion layer also the text's, by its
    cross-attention. Each attention's average counts by how many tokens ask in it. Tokens are dropped between attention and
    MLP, so that the MLP of layer ``K`` is spared as well.

    Args:
        steps: The layers of the backbone.
        keep_ratio: Share of the image tokens that is kept, in [0.001, 1]. Calibration sets it for a wanted speed-up.
        streams: Streams that are cut, memories too; ``'image'`` stands for ``'image0'`` and ``'image1'`` as well.
        layers: Per stage, the layer indices at which tokens are dropped; stages left out: the second layer (or the only one) of
            encoders of these streams, nowhere else.

    Raises:
        ValueError: If ``keep_ratio`` is outside [0.001, 1], or a stream, stage or layer is unknown.
        UnsupportedBackboneError: If nothing reads the streams in these layers.
    """

    knob = Knob("dropped share", 0.0, 0.999)
    counts_fixed = True

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        keep_ratio: float = 0.5,
        streams: Sequence[str] = ("image",),
        layers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(steps=steps)
        self.set_knob(dropped_share(keep_ratio))
        self.readers = readers(steps, streams, encoder_layers(steps, streams, layers, lambda count: [min(1, count - 1)]))

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "a quarter, sooner": {"keep_ratio": 0.25, "layers": {"image": [0]}}}

    def looks(self, step: LayerStep) -> Mapping[str, frozenset[str]]:
        return {view.name: frozenset({RECEIVED}) for views in self.readers.get(step.name, {}).values() for view in views}

    def reduces(self, step: LayerStep) -> frozenset[str]:
        return frozenset(self.readers.get(step.name, {}))

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        dropped = self.progress * self.knob_value.float()
        keep = {}
        for name, views in self.readers[step.name].items():
            layout = streams[name].layout
            total = torch.zeros_like(layout.protected, dtype=torch.float32)
            for view in views:
                received = evidence[view.name].received
                assert received is not None
                asking = streams[view.name.rpartition(".")[0]].layout.counts()
                if view.first is not None:
                    asking = torch.full_like(asking, view.first)
                total = total + received * layout.per_token(asking)
            keep[name] = keep_best(layout, total, dropped)
        return Decision(keep=keep)

    def reads(self, step: LayerStep) -> frozenset[str]:
        return frozenset()

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        return looking_multiply_adds(step, self.looks(step), counts)
