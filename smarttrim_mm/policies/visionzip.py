"""VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467): behind the image encoder, few tokens stay and the rest are merged."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smarttrim_mm.layers.evidence import GUIDE_ROW, KEYS, looking_multiply_adds
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.ops.fusing import kept_counts, merge_into_samples
from smarttrim_mm.ops.ranking import keep_top
from smarttrim_mm.policies.base import AttentionPolicy, Knob, own_attentions
from smarttrim_mm.policies.merging import free_rows, merge_of_rows
from smarttrim_mm.policies.ranked import dropped_share, encoder_layers
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Evidence, Layout, Merge, Streams


@POLICIES.register_module()
class VisionZip(AttentionPolicy):
    """Keeps, in the last image layer, the tokens that the class token attends to, and merges the rest; nothing is trained.

    Most of what is kept are *dominant* tokens, those with the most attention from the class token, mean over heads. The others
    are *contextual*: of what is not dominant, an even sample, into each of which those merge whose keys are most like its own.
    So few tokens reach what reads the image: in the paper a language model, here the fusion layers, whose image tokens these
    are. The image encoder itself runs whole, but for its last MLP.

    The paper keeps 192, 128 or 64 of 576 patches, of which 30, 20 and 10 are contextual. Ours: these as shares; that it
    happens between attention and MLP of the last layer; that keys are compared by their cosine, mean over heads, and that
    a contextual token is the plain mean of the sample and of what merges into it.

    Args:
        steps: The layers of the backbone.
        keep_ratio: Share of the image tokens that is kept, contextual ones included, in [0.001, 1]. Calibration sets it for a
            wanted speed-up.
        contextual: Share of the kept that is contextual, rounded up, in (0, 1].
        streams: Streams that are cut, in layers that have a self-attention of them; ``'image'`` stands for ``'image0'`` and
            ``'image1'`` as well.
        layers: Per stage, the layer indices at which tokens are merged; stages left out: the last one of encoders of these
            streams, nowhere else.

    Raises:
        ValueError: If ``keep_ratio`` or ``contextual`` is out of its range, or a stream, stage or layer is unknown.
        UnsupportedBackboneError: If the streams have no self-attention in these layers.
    """

    knob = Knob("dropped share", 0.0, 0.999)
    counts_fixed = True
    wants = frozenset({GUIDE_ROW, KEYS})

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        keep_ratio: float = 1 / 3,
        contextual: float = 10 / 64,
        streams: Sequence[str] = ("image",),
        layers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(steps=steps)
        if not 0 < contextual <= 1:
            raise ValueError(f"contextual is {contextual}; expected a share of the kept tokens in (0, 1], such as {10 / 64}")
        self.set_knob(dropped_share(keep_ratio))
        self.contextual = contextual
        self.attentions = own_attentions(steps, streams, encoder_layers(steps, streams, layers, lambda count: [count - 1]))

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "half, half of it merged": {"keep_ratio": 0.5, "contextual": 0.5}}

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        dropped = self.progress * self.knob_value.float()
        merge = {}
        for name, view in self.attentions[step.name].items():
            row, keys = evidence[view.name].guide_row, evidence[view.name].keys
            assert row is not None and keys is not None
            merge[name] = zip_tokens(streams[name].layout, row, keys, dropped, self.contextual)
        return Decision(merge=merge)

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        views = self.attentions.get(step.name, {}).items()
        alike = sum((counts[name] ** 2 * view.head_width for name, view in views), 0.0)
        return looking_multiply_adds(step, self.looks(step), counts) + alike


def zip_tokens(layout: Layout, scores: Tensor, keys: Tensor, dropped: Tensor | float, contextual: float) -> Merge:
    """Which tokens merge into which, so that the best and a sample of the others stay.

    Args:
        layout: How the tokens lie.
        scores: Of each token, [B, N] or [S].
        keys: Likewise, [B, N, d] or [S, d].
        dropped: Share of the tokens, without those that are protected, that merges away, in [0, 1).
        contextual: Share of the others that are merged into.
    """
    free = free_rows(layout)
    kept = kept_counts(free.sum(1), dropped)
    samples = torch.ceil(kept * contextual - 1e-4).long()  # 1e-4: float error is no extra token
    rows = layout.to_rows(scores.float(), 0.0).masked_fill(~free, -torch.inf)
    dominant = keep_top(rows, kept - samples)
    place = merge_into_samples(layout.to_rows(keys, 0.0), free & ~dominant, samples)
    return merge_of_rows(layout, place, torch.ones_like(scores, dtype=torch.float32))
