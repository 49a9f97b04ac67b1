"""PyramidDrop (Xing et al., CVPR 2025, arXiv 2410.17247): image tokens are dropped in stages, as the text looks at them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from smarttrim_mm.layers.evidence import GUIDE_ROW
from smarttrim_mm.layers.views import AttentionView, LayerStep, modality
from smarttrim_mm.policies.base import AttentionPolicy, Knob, UnsupportedBackboneError
from smarttrim_mm.policies.ranked import dropped_share, encoder_layers, keep_best, readers
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Evidence, Streams


@POLICIES.register_module()
class PyramidDrop(AttentionPolicy):
    """Drops a share of the image tokens at the end of each stage but the last; nothing need be trained.

    The paper divides a language model that reads image and text as one sequence into stages of equal depth (four: the ends are
    the layers 8, 16 and 24 of 32, counted from 1). At each end half of the image tokens that are left stay, those that the last
    token of the instruction attends to most.

    What maps to what here is ours: the layers of the language model are all layers through which the image goes, those of
    the image encoder and then the fusion layers. The last token of the instruction, which has read all of it, is the token that
    speaks for the text, where the text reads the image by a cross-attention; in the image encoder, which no text reads, it is
    the image's own class token. Its attention is the mean over heads. Tokens are dropped between attention and MLP of a stage's
    last layer, so that this MLP is spared as well.

    Args:
        steps: The layers of the backbone.
        keep_ratio: Share of the image tokens that is kept at each end, in [0.001, 1]. Calibration sets it for a wanted
            speed-up.
        parts: Stages of equal depth, at least 2; of fewer layers, each makes one.
        streams: Streams that are cut, memories too; ``'image'`` stands for ``'image0'`` and ``'image1'`` as well.
        layers: Per stage of the backbone, the layer indices that are such ends, in place of those that ``parts`` makes; stages
            left out: none.

    Raises:
        ValueError: If ``keep_ratio`` or ``parts`` is out of its range, or a stream, stage or layer is unknown.
        UnsupportedBackboneError: If nothing reads the streams in these layers.
    """

    knob = Knob("dropped share per stage", 0.0, 0.999)
    counts_fixed = True
    wants = frozenset({GUIDE_ROW})

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        keep_ratio: float = 0.5,
        parts: int = 4,
        streams: Sequence[str] = ("image",),
        layers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(steps=steps)
        if parts < 2:
            raise ValueError(f"parts is {parts}; expected at least 2 stages, as tokens are dropped between two")
        self.set_knob(dropped_share(keep_ratio))
        chosen = None if layers is None else encoder_layers(steps, streams, layers, lambda count: [])
        reading = readers(steps, streams, chosen)
        names = list(reading)
        ends = names if layers is not None else stage_ends(names, parts)
        if not ends:
            raise UnsupportedBackboneError(f"a single layer reads the streams {list(streams)}: there are no stages. Take FastV")
        self.attentions = {name: {stream: _asked(views) for stream, views in reading[name].items()} for name in ends}

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "less, in two stages": {"keep_ratio": 0.3, "parts": 2}}

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        dropped = self.progress * self.knob_value.float()
        keep = {}
        for name, view in self.attentions[step.name].items():
            row = evidence[view.name].guide_row
            assert row is not None
            keep[name] = keep_best(streams[name].layout, row, dropped)
        return Decision(keep=keep)


def stage_ends(layers: Sequence[str], parts: int) -> list[str]:
    """The last layer of each stage but the last, where layers are divided into so many stages of equal depth."""
    ends = (len(layers) * part // parts for part in range(1, parts))
    return [layers[end - 1] for end in dict.fromkeys(ends) if end > 0]


def _asked(views: Sequence[AttentionView]) -> AttentionView:
    """The attention whose guide token ranks a stream's tokens: that of another modality if there is one."""
    others = [view for view in views if modality(view.name.rpartition(".")[0]) != modality(view.reads)]
    return (others or list(views))[0]
