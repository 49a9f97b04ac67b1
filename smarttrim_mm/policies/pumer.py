"""PuMer (Cao et al., ACL 2023, arXiv 2305.17530): what the text does not look at is pruned, what is alike merges."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smarttrim_mm.layers.evidence import KEYS, RECEIVED, looking_multiply_adds
from smarttrim_mm.layers.views import AttentionView, LayerStep, modality
from smarttrim_mm.ops.matching import bipartite_match, matching_multiply_adds
from smarttrim_mm.ops.ranking import keep_top
from smarttrim_mm.policies.base import Knob, Policy, UnsupportedBackboneError, text_to_image_attentions
from smarttrim_mm.policies.merging import free_rows, merge_of_rows
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Evidence, Layout, Streams


@POLICIES.register_module()
class PuMer(Policy):
    """Prunes image tokens and merges those of image and text, each among themselves, in layers where a text reads an image.

    Between attention and MLP of such a layer (section 3): of an image's N tokens, round(p N) go that get the least of the
    text's cross-attention, averaged over heads and over the text's tokens; of the others round(m N) merge into similar ones, by
    the bipartite matching of ToMe (arXiv 2210.09461); of a text's T tokens round(t T) merge likewise. No parameters. The paper
    fine-tunes with the KL divergence to the fine-tuned dense model (here ``SelfDistillation``), with ratios for METER of
    p = m = t = 0.2 on VQAv2, and p = 0.3, m = 0.5, t = 0.2 on SNLI-VE and NLVR2.

    Ours: N and T are the tokens that came into the layer without the protected ones; at most half of what may merge does; what
    merges is replaced by the plain mean, and later attention does not weigh it by its size; alike is what has similar keys in
    the tokens' own self-attention, or in the cross-attention that reads them where they have no layer there (BLIP's image,
    which is cut for the text's later layers); tokens are reduced in every such layer unless ``layers`` says where (the paper:
    in several); one knob s for the three ratios r, 1 - (1 - r)^s each, the config's own at 1.

    Args:
        steps: The layers of the backbone.
        prune_ratio: p, in [0, 1).
        merge_ratio: m, in [0, 1).
        text_merge_ratio: t, in [0, 1).
        strength: s, in [0, 8]; 0 leaves everything. Calibration sets it for a wanted speed-up.
        layers: Per stage, the layer indices at which tokens are reduced; stages left out: every layer.

    Raises:
        ValueError: If a ratio is outside [0, 1), or the strength outside its range, or a stage or layer is unknown.
        UnsupportedBackboneError: If in none of these layers a text reads an image.
    """

    knob = Knob("strength", 0.0, 8.0)
    counts_fixed = True

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        prune_ratio: float = 0.2,
        merge_ratio: float = 0.2,
        text_merge_ratio: float = 0.2,
        strength: float = 1.0,
        layers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(steps=steps)
        self.ratios = {"prune_ratio": prune_ratio, "merge_ratio": merge_ratio, "text_merge_ratio": text_merge_ratio}
        for name, ratio in self.ratios.items():
            if not 0 <= ratio < 1:
                raise ValueError(f"{name} is {ratio}; expected a share in [0, 1), 0 leaves every token")
        self.set_knob(strength)
        images, texts = prune_ratio > 0 or merge_ratio > 0, text_merge_ratio > 0
        self.crosses = text_to_image_attentions(steps, layers)
        if not self.crosses:
            raise UnsupportedBackboneError(
                f"layers is {layers}: in none of these layers of this backbone a text reads an image, by whose attention PuMer "
                "prunes. Choose other layers, or a policy that needs no text, such as ToMe"
            )
        self.matched: dict[str, dict[str, AttentionView]] = {}  # whose keys say what is alike, by step and stream
        for step in steps:
            for image, cross in self.crosses.get(step.name, {}).items():
                of_step = self.matched.setdefault(step.name, {})
                if images:
                    of_step[image] = _own(step, image) or cross
                text = cross.name.rpartition(".")[0]
                own = _own(step, text)
                if texts and own is not None:
                    of_step[text] = own

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "strong": {"prune_ratio": 0.3, "merge_ratio": 0.5, "strength": 1.5}}

    def looks(self, step: LayerStep) -> Mapping[str, frozenset[str]]:
        wanted: dict[str, frozenset[str]] = {}
        for name, view in self.matched.get(step.name, {}).items():
            ratio = self.ratios["merge_ratio" if modality(name) == "image" else "text_merge_ratio"]
            if ratio > 0:
                wanted[view.name] = frozenset({KEYS})
        if self.ratios["prune_ratio"] > 0:
            for view in self.crosses.get(step.name, {}).values():
                wanted[view.name] = wanted.get(view.name, frozenset()) | {RECEIVED}
        return wanted

    def reduces(self, step: LayerStep) -> frozenset[str]:
        return frozenset(self.matched.get(step.name, {}))

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        crosses = self.crosses[step.name]
        keep, merge = {}, {}
        for name, view in self.matched[step.name].items():
            layout, is_image = streams[name].layout, name in crosses
            free = free_rows(layout)
            number = free.sum(1)
            if is_image and self.ratios["prune_ratio"] > 0:
                free = _most_read(layout, free, evidence[crosses[name].name], number - self._share("prune_ratio", number))
                keep[name] = layout.from_rows(free)
            ratio = "merge_ratio" if is_image else "text_merge_ratio"
            if self.ratios[ratio] > 0:
                keys = evidence[view.name].keys
                assert keys is not None
                place = bipartite_match(layout.to_rows(keys, 0.0), free, self._share(ratio, number))
                merge[name] = merge_of_rows(layout, place, torch.ones_like(layout.protected, dtype=torch.float32))
        return Decision(keep=keep, merge=merge)

    def reads(self, step: LayerStep) -> frozenset[str]:
        return frozenset()

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        looks = self.looks(step)
        total = looking_multiply_adds(step, looks, counts)
        for name, view in self.matched.get(step.name, {}).items():
            if KEYS in looks.get(view.name, ()):
                total = total + matching_multiply_adds(counts[name], view.head_width)
        return total

    def _share(self, ratio: str, number: Tensor) -> Tensor:
        """So many of each instance's tokens, rounded, long [B]."""
        share = 1 - (1 - self.ratios[ratio]) ** (self.progress * self.knob_value)
        return torch.floor(number * share + 0.5 + 1e-4).long()  # 1e-4: float error


def _own(step: LayerStep, stream: str) -> AttentionView | None:
    """The self-attention of a stream in a step."""
    attentions = step.layers[stream].attentions if stream in step.layers else ()
    return next((view for view in attentions if view.reads == stream and view.first is None), None)


def _most_read(layout: Layout, free: Tensor, evidence: Evidence, counts: Tensor) -> Tensor:
    """Marks the free tokens of each row that receive the most attention, bool [B, n]."""
    assert evidence.received is not None
    received = layout.to_rows(evidence.received.detach(), -torch.inf)
    return keep_top(received.masked_fill(~free, -torch.inf), counts)
