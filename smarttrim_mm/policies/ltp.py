"""LTP, learned token pruning (Kim et al., KDD 2022, arXiv 2107.00910): tokens that receive little attention are dropped."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smarttrim_mm.layers.evidence import RECEIVED
from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.layers.views import LayerStep, modality
from smarttrim_mm.ops.gates import straight_through
from smarttrim_mm.policies.base import AttentionPolicy, Knob, check_streams, own_attentions
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Evidence, Streams


@POLICIES.register_module()
class LTP(AttentionPolicy):
    """Drops, between attention and MLP of each layer, the tokens whose importance is below the layer's learned threshold.

    A token's importance is the attention that it receives, averaged over heads and over the tokens that ask. Thresholds rise
    linearly over the layers to ``threshold`` and are learned from there. Scores of N tokens have the mean 1 / N, as in the
    paper: one threshold keeps a smaller share of a longer sequence.

    Training has two stages. In the soft one, thresholds are learned: a gate's gradient is that of
    sigmoid((score - threshold) / temperature), and a penalty on the kept share pulls thresholds up. In the hard one, from
    ``hard_from`` on, thresholds are frozen, and the model adapts to them.

    Ours: gates are 0 or 1 in the soft stage too, with the soft gate's gradient (the paper multiplies by the soft gate);
    the learned part is relative to ``threshold``, so that one learning rate suits it and the knob scales all of it:
    progress * threshold * (l / L + delta_l); all of it grows with the curriculum from 0, which keeps everything; protected
    tokens stay, and are left out of the penalty, which is a share, not a number of tokens. ``mask_weight=0`` leaves the pull to
    a budget loss of the model, which sets all learned policies the same target (``ComputeBudget``).

    Args:
        steps: The layers of the backbone.
        threshold: Threshold of the last layer before anything is learned, in [0, 1]; the published code's 0.01 is for texts.
            Calibration sets it for a wanted speed-up.
        streams: Streams that are cut, in layers that have a self-attention of them; ``'image'`` stands for ``'image0'`` and
            ``'image1'`` as well; None: image and text, those that there are.
        layers: Per stage, the layer indices at which tokens are dropped; stages left out: every layer.
        temperature: Softness of the gates' gradient. The paper searched 1e-4 to 2e-3; with hard gates a larger one lets more
            tokens teach the thresholds.
        mask_weight: Weight of the mean kept share over layers (the paper's lambda, 0.01 to 0.2).
        hard_from: Progress of the curriculum at which thresholds freeze, in (0, 1]; None: never. They then have no gradient:
            several processes need ``find_unused_parameters = True`` in the config.

    Raises:
        ValueError: If a number is out of its range, or a stream, stage or layer is unknown.
        UnsupportedBackboneError: If none of the streams has a self-attention in these layers.
    """

    knob = Knob("threshold of the last layer", 0.0, 1.0)
    wants = frozenset({RECEIVED})

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        threshold: float = 0.01,
        streams: Sequence[str] | None = None,
        layers: Mapping[str, Sequence[int]] | None = None,
        temperature: float = 0.01,
        mask_weight: float = 0.1,
        hard_from: float | None = None,
    ) -> None:
        super().__init__(steps=steps)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; expected a share of attention in [0, 1], 0 drops nothing")
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; expected a positive number")
        if mask_weight < 0:
            raise ValueError(f"mask_weight is {mask_weight}; expected a number >= 0, 0 leaves the penalty out")
        if hard_from is not None and not 0 < hard_from <= 1:
            raise ValueError(f"hard_from is {hard_from}; expected a progress of the curriculum in (0, 1], or None for never")
        self.set_knob(threshold)
        self.temperature, self.mask_weight, self.hard_from = temperature, mask_weight, hard_from
        self.attentions = own_attentions(steps, check_streams(steps, streams), layers)
        self.places: dict[tuple[str, str], int] = {}  # by step and stream, where in delta and rise
        for step, views in self.attentions.items():
            for name in views:
                self.places[step, name] = len(self.places)
        self.delta = nn.Parameter(torch.zeros(len(self.places)))
        self.register_buffer("rise", _rises(list(self.places)), persistent=False)
        self.rise: Tensor

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "much": {"threshold": 0.1}}

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        thresholds, keep = self.thresholds(), {}
        for name, view in self.attentions[step.name].items():
            scores, place = evidence[view.name].received, self.places[step.name, name]
            assert scores is not None
            above = scores - thresholds[place]
            if self.training and not self.hard:
                keep[name] = straight_through(torch.sigmoid(above / self.temperature), above >= 0)
            else:
                keep[name] = above >= 0
        return Decision(keep=keep)

    @property
    def hard(self) -> bool:
        """Whether training is in its second stage, where thresholds are frozen."""
        return self.hard_from is not None and self.progress >= self.hard_from

    def thresholds(self) -> Tensor:
        """Thresholds of all layers and streams, in the order of ``places``."""
        delta = self.delta.detach() if self.hard else self.delta
        return self.progress * self.knob_value * (self.rise + delta)

    def losses(self, record: TrimRecord) -> dict[str, Tensor]:
        """``mask_weight`` times the kept share of the tokens that are not protected, mean over layers and instances."""
        if self.mask_weight == 0 or self.hard:
            return {}
        shares = []
        for entry in record.steps:
            for name in self.reduces(entry.step):
                layout = entry.after[name]
                free = layout.full() - layout.floor()
                shares.append(((layout.counts() - layout.floor()) / free.clamp(min=1)).mean())
        return {"loss_mask": self.mask_weight * torch.stack(shares).mean()}


def _rises(places: Sequence[tuple[str, str]]) -> Tensor:
    """For each place, by step and stream, l / L: it is in the l-th of the L layers of its modality."""
    layers: dict[str, list[str]] = {}
    for step, stream in places:
        of_stream = layers.setdefault(modality(stream), [])
        if step not in of_stream:
            of_stream.append(step)
    of = {(step, stream): layers[modality(stream)] for step, stream in places}
    return torch.tensor([(of[place].index(place[0]) + 1) / len(of[place]) for place in places])
