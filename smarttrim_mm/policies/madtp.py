"""MADTP (Cao et al., CVPR 2024, arXiv 2403.02991): what is important by several attentions stays, the rest fuses."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smarttrim_mm.layers.evidence import GUIDE_ROW, RECEIVED
from smarttrim_mm.layers.views import AttentionView, LayerStep, modality
from smarttrim_mm.ops.fusing import fuse_rest
from smarttrim_mm.policies.base import AttentionPolicy, Knob, own_attentions
from smarttrim_mm.policies.merging import free_rows, merge_of_rows
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Evidence, Streams


@POLICIES.register_module()
class MADTP(AttentionPolicy):
    """Keeps the tokens whose importance reaches a threshold, as many as an instance has, and fuses its others into one.

    What is the paper's: a token's importance is the mean of the attention it receives from its own stream, of that of the class
    token, and of an attention that is guided by the other modality; a threshold on it decides in each layer how many tokens an
    instance keeps ("dynamic token pruning"); what is pruned is fused, weighted by importance.

    Ours: tokens are cut between attention and MLP. Without a class token the first attention stands in for the second. The
    third is the cross-attention by which another modality reads the stream, and left out of the mean where there is none: the
    paper's learned tokens that align modalities (its "alignment guidance", and their loss) have no place in a host's layers.
    The paper's threshold is learned; ours is one number for all layers, which calibration sets, so that nothing is learned:
    importance is measured against the mean of the instance's tokens that are not protected, and the number says how many times
    that mean a token needs. The fused token takes the place of the most important one of those that it is made of.

    Args:
        steps: The layers of the backbone.
        threshold: Importance that a token needs, in [0, 3]; 0 keeps all, 1 those above average. Calibration sets it for a
            wanted speed-up.
        streams: Streams that are cut, in layers that have a self-attention of them; ``'image'`` stands for ``'image0'`` and
            ``'image1'`` as well; None: image and text, those that there are.
        layers: Per stage, the layer indices at which tokens are cut; stages left out: every layer.

    Raises:
        ValueError: If ``threshold`` is outside [0, 3], or a stream, stage or layer is unknown.
        UnsupportedBackboneError: If none of the streams has a self-attention in these layers.
    """

    knob = Knob("importance threshold", 0.0, 3.0)

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        threshold: float = 0.0,
        streams: Sequence[str] | None = None,
        layers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(steps=steps)
        self.set_knob(threshold)
        self.attentions = own_attentions(steps, streams, layers)

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "nearly average": {"threshold": 0.95}}

    def looks(self, step: LayerStep) -> Mapping[str, frozenset[str]]:
        wanted: dict[str, frozenset[str]] = {}
        for name, view in self.attentions.get(step.name, {}).items():
            wanted[view.name] = frozenset({GUIDE_ROW, RECEIVED})
            wanted |= {cross.name: frozenset({RECEIVED}) for cross in _readers(step, name)}
        return wanted

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        needed = self.progress * self.knob_value
        merge = {}
        for name, view in self.attentions[step.name].items():
            layout, own = streams[name].layout, evidence[view.name]
            seen = [own.received, own.guide_row, *(evidence[cross.name].received for cross in _readers(step, name))]
            free = free_rows(layout)
            rows = [layout.to_rows(each.detach(), 0.0) for each in seen if each is not None]
            importance = relative_importance(torch.stack(rows), free)
            counts = ((importance >= needed) & free).sum(1)
            place = fuse_rest(importance.masked_fill(~free, -torch.inf), counts)
            # a weight of 0, to which attention may underflow, would leave a mean of nothing
            merge[name] = merge_of_rows(layout, place, layout.from_rows(importance).clamp(min=1e-12))
        return Decision(merge=merge)


def relative_importance(attentions: Tensor, free: Tensor) -> Tensor:
    """Mean of several attentions, each measured against its mean over an instance's free tokens.

    Args:
        attentions: At least one, fp32 [k, B, n].
        free: Tokens that count, bool [B, n].

    Returns:
        [B, n], 1 on average over the free tokens, 0 at others.
    """
    attentions = attentions * free
    total = attentions.sum(2, keepdim=True).clamp(min=1e-12)  # an instance may have no free token
    return (attentions / total).mean(0) * free.sum(1, keepdim=True)


def _readers(step: LayerStep, stream: str) -> list[AttentionView]:
    """The cross-attentions by which another modality reads a stream."""
    views = [(name, view) for name, layer in step.layers.items() for view in layer.attentions]
    return [view for name, view in views if view.reads == stream and modality(name) != modality(stream)]
