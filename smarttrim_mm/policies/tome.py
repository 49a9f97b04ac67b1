"""ToMe (Bolya et al., ICLR 2023, arXiv 2210.09461): similar tokens merge in every layer; nothing is learned."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from smarttrim_mm.layers.evidence import KEYS
from smarttrim_mm.layers.views import LayerStep, modality
from smarttrim_mm.ops.matching import bipartite_match, matching_multiply_adds, merge_counts
from smarttrim_mm.policies.base import AttentionPolicy, Knob, own_attentions
from smarttrim_mm.policies.merging import free_rows, merge_of_rows, sizes_of
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Evidence, Streams


@POLICIES.register_module()
class ToMe(AttentionPolicy):
    """Merges, between attention and MLP of each chosen layer, the tokens whose keys are most alike (section 3).

    What is compared is the mean over heads of the self-attention's keys; tokens merge into their mean weighted by size, and
    attention weighs keys by size ("proportional attention"). The same number merges in every layer, as a share of the
    instance's real tokens, as far as half of those that are left allows.

    Ours: the number follows the instance's own length, so that texts and images of several sizes can be merged; protected
    tokens take no part (the paper: the class token). Without proportional attention, sizes are not followed: a token that
    stands for several then counts once in a later mean.

    Args:
        steps: The layers of the backbone.
        merge_ratio: Tokens that merge in each chosen layer, as a share of the real tokens, in [0, 0.5]. Calibration sets it for
            a wanted speed-up.
        streams: Streams that are merged, in layers that have a self-attention of them; ``'image'`` stands for ``'image0'`` and
            ``'image1'`` as well.
        layers: Per stage, the layer indices at which tokens merge; stages left out: every layer.
        proportional: Whether tokens carry their sizes, by which means and attention weigh them.

    Raises:
        ValueError: If ``merge_ratio`` is outside [0, 0.5], or a stream, stage or layer is unknown.
    """

    knob = Knob("merged share per layer", 0.0, 0.5)
    counts_fixed = True
    wants = frozenset({KEYS})

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        merge_ratio: float = 0.0,
        streams: Sequence[str] = ("image",),
        layers: Mapping[str, Sequence[int]] | None = None,
        proportional: bool = True,
    ) -> None:
        super().__init__(steps=steps)
        if not 0 <= merge_ratio <= 0.5:
            raise ValueError(f"merge_ratio is {merge_ratio}; expected a share in [0, 0.5], 0 merges nothing")
        self.set_knob(merge_ratio)
        self.proportional = proportional
        self.attentions = own_attentions(steps, streams, layers)
        self.depth: dict[tuple[str, str], int] = {}  # layers that merge before, by step and stream
        merging: dict[str, int] = {}
        for step, views in self.attentions.items():
            for name in views:
                self.depth[step, name] = merging.get(modality(name), 0)  # 'image0' goes on where 'image' was
            for kind in {modality(name) for name in views}:
                merging[kind] = merging.get(kind, 0) + 1

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "20% a layer": {"merge_ratio": 0.2}}

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        share = self.progress * self.knob_value
        merge = {}
        for name, view in self.attentions[step.name].items():
            layout, keys = streams[name].layout, evidence[view.name].keys
            assert keys is not None
            free = free_rows(layout)
            counts = merge_counts(free.sum(1), self.depth[step.name, name], layout.full() * share)
            place = bipartite_match(layout.to_rows(keys, 0.0), free, counts)
            merge[name] = merge_of_rows(layout, place, sizes_of(layout), self.proportional)
        return Decision(merge=merge)

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        views = self.attentions.get(step.name, {})
        return sum((matching_multiply_adds(counts[name], view.head_width) for name, view in views.items()), 0.0)
