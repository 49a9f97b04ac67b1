"""CrossGET (Shi et al., ICML 2024, arXiv 2305.17455): tokens merge that are alike, and that the other modality needs least."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from smarttrim_mm.layers.evidence import KEYS
from smarttrim_mm.layers.views import LayerStep, modality
from smarttrim_mm.ops.matching import complete_match, complete_multiply_adds
from smarttrim_mm.policies.base import AttentionPolicy, Knob, own_attentions
from smarttrim_mm.policies.merging import free_rows, merge_of_rows
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Evidence, Streams
from smarttrim_mm.trimmers.token_trimmer import Query


@POLICIES.register_module()
class CrossGET(AttentionPolicy):
    """Merges similar tokens between attention and MLP of each chosen layer, guided by the other modality.

    What is the paper's: tokens are merged between attention and MLP; a cross token of each modality, which learns to stand for
    the other, says how important each token is; any token may merge into any other ("complete-graph soft matching", by
    :func:`~smarttrim_mm.ops.matching.complete_match`), where the importance has a say; and what merges is replaced by a mean
    weighted by the soft-max of importance ("cross-guided ensemble").

    Ours, as the layers of a host have no room for further tokens: the guide token of the other modality, where it is at hand
    (fusion layers; an image encoder behind ``text_first``), plays the cross token, else the guide token of the own one. It is
    normalised and projected by a learned map, one for each stage, stream and guide; the importance of a token is the cosine of
    that with the token's key (the mean over heads), mean over guides. There is no loss that aligns cross tokens: the map learns
    from the task and from distillation, by the weights of the means. Sizes of tokens, by which the published code weighs means
    too, are not followed. So many tokens merge as ToMe would merge, rounded down in each layer, but one of the tokens that are
    not protected stays (the published code merges at most half of them).

    Args:
        steps: The layers of the backbone.
        merge_ratio: Tokens that merge in each chosen layer, as a share of the instance's real tokens, in [0, 0.5]. Calibration
            sets it for a wanted speed-up.
        streams: Streams that are merged, in layers that have a self-attention of them; ``'image'`` stands for ``'image0'`` and
            ``'image1'`` as well; None: image and text, those that there are.
        layers: Per stage, the layer indices at which tokens merge; stages left out: every layer.

    Raises:
        ValueError: If ``merge_ratio`` is outside [0, 0.5], or a stream, stage or layer is unknown.
        UnsupportedBackboneError: If none of the streams has a self-attention in these layers.
    """

    knob = Knob("merged share per layer", 0.0, 0.5)
    counts_fixed = True
    wants = frozenset({KEYS})

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        merge_ratio: float = 0.2,
        streams: Sequence[str] | None = None,
        layers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(steps=steps)
        if not 0 <= merge_ratio <= 0.5:
            raise ValueError(f"merge_ratio is {merge_ratio}; expected a share in [0, 0.5], 0 merges nothing")
        self.set_knob(merge_ratio)
        self.attentions = own_attentions(steps, streams, layers)
        self.queries = nn.ModuleDict()
        for step in steps:
            for name, view in self.attentions.get(step.name, {}).items():
                for guide in _guides(step, name):
                    key = _key(step, name, guide)
                    if key not in self.queries:
                        self.queries[key] = Query(step.widths()[guide], view.head_width)

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "image, 25% a layer": {"merge_ratio": 0.25, "streams": ["image"]}}

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        share = self.progress * self.knob_value
        merge = {}
        for name, view in self.attentions[step.name].items():
            layout, keys = streams[name].layout, evidence[view.name].keys
            assert keys is not None
            rows, free = layout.to_rows(keys, 0.0), free_rows(layout)
            importance = self._importance(step, name, streams, guides, rows)
            counts = torch.floor(layout.full() * share + 1e-4).long()  # 1e-4: float error
            place = complete_match(rows.detach(), importance.detach(), free, counts)
            merge[name] = merge_of_rows(layout, place, layout.from_rows(importance).exp())
        return Decision(merge=merge)

    def reads(self, step: LayerStep) -> frozenset[str]:
        wanted = {guide for name in self.attentions.get(step.name, {}) for guide in _guides(step, name)}
        return frozenset(step.guides) & wanted

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        total: Tensor | float = 0.0
        for name, view in self.attentions.get(step.name, {}).items():
            total = total + complete_multiply_adds(counts[name], view.head_width)
            for guide in _guides(step, name):
                total = total + (step.widths()[guide] + counts[name]) * view.head_width
        return total

    def _importance(self, step: LayerStep, name: str, streams: Streams, guides: Mapping[str, Tensor], keys: Tensor) -> Tensor:
        """Of tokens, by their keys in rows [B, n, d]: fp32 [B, n]."""
        unit, found = normalize(keys.float(), dim=-1), []
        for guide in _guides(step, name):
            token = streams[guide].guide() if guide in streams else guides[guide]
            query = normalize(self.queries[_key(step, name, guide)](token).float(), dim=-1)
            found.append((unit @ query.unsqueeze(2)).squeeze(2).float())
        return torch.stack(found).mean(0)


def _guides(step: LayerStep, stream: str) -> list[str]:
    """Streams whose guide tokens guide another: those of the other modality, where there are any, else its own."""
    others = [name for name in step.widths() if modality(name) != modality(stream)]
    return others or [stream]


def _key(step: LayerStep, stream: str, guide: str) -> str:
    return f"{step.stage}/{stream}/{guide}"
