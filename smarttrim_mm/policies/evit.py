"""EViT (Liang et al., ICLR 2022, arXiv 2202.07800): what the class token attends to least is fused into one token."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from smarttrim_mm.layers.evidence import GUIDE_ROW
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.policies.base import AttentionPolicy, Knob, own_attentions
from smarttrim_mm.policies.ranked import at_parts, dropped_share, encoder_layers, fuse_worst, keep_best
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Evidence, Streams


@POLICIES.register_module()
class EViT(AttentionPolicy):
    """Keeps, between attention and MLP of a few layers, the tokens that the class token attends to most.

    The score of a token is the attention of the class token to it, mean over heads. Of the tokens that are left besides the
    class token, the best ``ceil(keep_ratio * n)`` stay, and the others are fused into one, weighted by score, which goes on as
    a token like any other. In training the ratio falls from 1 to its target by a cosine: ``CurriculumHook`` with ``schedule=
    "cosine"``. Nothing is learned but what the backbone learns.

    The paper's settings: layers 4, 7 and 10 of 12, counted from 1, and ratios of 0.5 to 0.9. Ours: these layers at any
    depth, after each quarter of an encoder; the fused token is a mean, whose weights sum to 1, in the place of the best
    of the fused (in the paper it is appended, and its weights are the scores as they are); other streams than the image's.

    Args:
        steps: The layers of the backbone.
        keep_ratio: Share kept at each chosen layer, of the tokens that may be dropped, in [0.001, 1]. Calibration sets it for
            a wanted speed-up.
        fuse: Whether what is not kept is fused; else it is dropped.
        streams: Streams that are cut, in layers that have a self-attention of them; ``'image'`` stands for ``'image0'`` and
            ``'image1'`` as well.
        layers: Per stage, the layer indices at which tokens are dropped; stages left out: after each quarter of the encoders
            of these streams, nowhere else.

    Raises:
        ValueError: If ``keep_ratio`` is outside [0.001, 1], or a stream, stage or layer is unknown.
        UnsupportedBackboneError: If the streams have no self-attention in these layers.
    """

    knob = Knob("dropped share per layer", 0.0, 0.999)
    counts_fixed = True
    wants = frozenset({GUIDE_ROW})

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        keep_ratio: float = 0.7,
        fuse: bool = True,
        streams: Sequence[str] = ("image",),
        layers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(steps=steps)
        self.set_knob(dropped_share(keep_ratio))
        self.fuse = fuse
        self.attentions = own_attentions(steps, streams, encoder_layers(steps, streams, layers, at_parts(4)))

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "half, not fused": {"keep_ratio": 0.5, "fuse": False}}

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        dropped = self.progress * self.knob_value.float()
        keep, merge = {}, {}
        for name, view in self.attentions[step.name].items():
            row = evidence[view.name].guide_row
            assert row is not None
            if self.fuse:
                merge[name] = fuse_worst(streams[name].layout, row, dropped)
            else:
                keep[name] = keep_best(streams[name].layout, row, dropped)
        return Decision(keep=keep, merge=merge)
