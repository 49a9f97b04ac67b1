"""TRIPS (Jiang et al., EMNLP 2022): inside the image encoder, the text's class token chooses the patches."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from smarttrim_mm.layers.evidence import KEYS
from smarttrim_mm.layers.views import AttentionView, LayerStep, modality
from smarttrim_mm.policies.base import AttentionPolicy, Knob, UnsupportedBackboneError, own_attentions
from smarttrim_mm.policies.merging import free_rows
from smarttrim_mm.policies.ranked import at_parts, dropped_share, encoder_layers, fuse_worst
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Evidence, Layout, Streams


@POLICIES.register_module()
class TRIPS(AttentionPolicy):
    """Keeps, between attention and MLP of two image layers, the patches that the text's class token would attend to most.

    The class token of the encoded text goes through the layer's own query projection and is compared with the keys of the
    patches; the soft-max over the patches is their score. The best stay, the others are fused into one, weighted by score.
    The text must run first: ``text_first`` of the backbone. ("Efficient Vision-and-Language Pre-training with Text-Relevant
    Image Patch Selection", arXiv 2305.04474 and, longer, 2403.07883.)

    With ``t`` such layers of ``L``, the paper puts them ``L / (t + 1)`` apart: two of 12 are the 5th and the 9th. Ours: means
    over heads, of the query and of the keys; that the fused token is a mean, whose weights sum to 1, in the place of the best
    of the fused; the default of ``keep_ratio``; and, as the paper has no rule for a text of another width than the image, a
    Linear between them for each such layer. What trains it are the weights of the fused token: which patches stay has no
    gradient.

    Args:
        steps: The layers of the backbone.
        keep_ratio: Share of the patches that is kept at each chosen layer, in [0.001, 1]. Calibration sets it for a wanted
            speed-up.
        projection: Whether a learned Linear leads from the text's width to the image's where they differ. Where they agree
            there is none, and nothing is learned but what the backbone learns.
        layers: Per stage, the layer indices at which patches are dropped; stages left out: after each third of the image
            encoders, nowhere else.

    Raises:
        ValueError: If ``keep_ratio`` is outside [0.001, 1], or a stage or layer is unknown.
        UnsupportedBackboneError: If no text guides these layers, or its width is another and ``projection`` is False.
    """

    knob = Knob("dropped share per layer", 0.0, 0.999)
    counts_fixed = True
    wants = frozenset({KEYS})

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        keep_ratio: float = 0.7,
        projection: bool = True,
        layers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(steps=steps)
        self.set_knob(dropped_share(keep_ratio))
        self.attentions = own_attentions(steps, ["image"], encoder_layers(steps, ["image"], layers, at_parts(3)))
        self.guides: dict[str, str] = {}
        self.projections = nn.ModuleDict()
        for step in steps:
            for view in self.attentions.get(step.name, {}).values():
                self.guides[step.name], width = _guide(step)
                if width == view.q.inputs:
                    continue
                if not projection:
                    raise UnsupportedBackboneError(
                        f"{step.name}: the text that guides the image encoder has width {width}, and its queries are made of "
                        f"width {view.q.inputs}, which needs projection=True (ours, learned) or encoders of one width"
                    )
                self.projections[_key(step)] = nn.Linear(width, view.q.inputs, bias=False)

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "half": {"keep_ratio": 0.5}}

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        dropped = self.progress * self.knob_value.float()
        text = guides[self.guides[step.name]]
        if _key(step) in self.projections:
            text = self.projections[_key(step)](text)
        merge = {}
        for name, view in self.attentions[step.name].items():
            layout, keys = streams[name].layout, evidence[view.name].keys
            assert keys is not None
            merge[name] = fuse_worst(layout, attention_of(text, view, keys, layout), dropped)
        return Decision(merge=merge)

    def reads(self, step: LayerStep) -> frozenset[str]:
        return frozenset({self.guides[step.name]}) if step.name in self.guides else frozenset()

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        total: Tensor | float = 0.0
        for name, view in self.attentions.get(step.name, {}).items():
            once = view.q.inputs * view.heads * view.head_width
            if _key(step) in self.projections:
                once += step.guides[self.guides[step.name]] * view.q.inputs
            total = total + once + counts[name] * view.head_width
        return total


def attention_of(text: Tensor, view: AttentionView, keys: Tensor, layout: Layout) -> Tensor:
    """How a text's token would attend to the tokens of an image that may be dropped.

    Args:
        text: The token, as wide as the image's, [B, D].
        view: The image's self-attention, whose query projection it goes through.
        keys: Of the image, mean over heads, [B, N, d] or [S, d].
        layout: How the image's tokens lie.

    Returns:
        fp32, [B, N] or [S]; 0 at protected tokens.
    """
    query = linear(text, *view.q.parameters()).unflatten(-1, (view.heads, -1)).mean(1).float()
    scores = (layout.to_rows(keys.float(), 0.0) * query.unsqueeze(1)).sum(-1) * view.head_width**-0.5
    free = free_rows(layout)
    # no infinity: an image that has no such token left has a row of nothing else
    weights = scores.masked_fill(~free, torch.finfo(scores.dtype).min).softmax(-1)
    return layout.from_rows(weights.masked_fill(~free, 0.0))


def _guide(step: LayerStep) -> tuple[str, int]:
    """Name and width of the text that guides a step."""
    for name, width in step.guides.items():
        if modality(name) == "text":
            return name, width
    raise UnsupportedBackboneError(
        f"{step.name}: no text guides the image encoder of this backbone, and TRIPS lets the text choose the patches. Set the "
        "backbone's text_first=True where it has one, or take EViT, which needs no text"
    )


def _key(step: LayerStep) -> str:
    return step.name.replace(".", "_")  # a ModuleDict's keys hold no dots
