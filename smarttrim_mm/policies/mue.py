"""MuE (Tang et al., CVPR 2023, arXiv 2211.11152): each modality of an input stops where its layers stop changing it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.policies.base import Knob, Policy, UnsupportedBackboneError, check_streams, chosen_steps, is_chosen
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Streams

_MEAN, _GONE = "mue_mean", "mue_gone"  # what is carried: the stream's mean before the last layer, and who has exited


@POLICIES.register_module()
class MuE(Policy):
    """Early exits: an instance's stream skips all later layers of its stage once a layer hardly changed it.

    Whether it is saturated is told by the cosine of its hidden state before and after a layer: above ``similarity`` it goes on
    to the next stage as it is. Modalities exit apart, each in its own encoder and again in each fusion stage; the first layer
    of a stage always runs. Nothing is learned.

    Ours: the hidden state that is compared is the mean of the stream's kept tokens (how the paper reduces over tokens is not
    known to us); exits lie in the encoders that the project runs, not in decoders, which the paper leaves early too. The paper
    trains with the task's loss at every layer of its decoder, so that early states are of use; this is left out: the policy is
    applied to a model as it is, or fine-tuned through its decisions, which pass no gradient.

    Args:
        steps: The layers of the backbone.
        similarity: The cosine above which an instance exits, in [-1, 1]; 1: none does. Calibration sets it for a wanted
            speed-up.
        streams: Streams that may exit; ``'image'`` stands for ``'image0'`` and ``'image1'`` as well; None: image and text,
            those that there are.
        layers: Per stage, the layer indices before which instances may exit; stages left out: every layer but the first.

    Raises:
        ValueError: If ``similarity`` is outside [-1, 1], or a stream, stage or layer is unknown.
        UnsupportedBackboneError: If there is nothing to skip: no chosen layer comes after another one of the same stream and
            stage.
    """

    knob = Knob("similarity", 1.0, -1.0)

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        similarity: float = 1.0,
        streams: Sequence[str] | None = None,
        layers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(steps=steps)
        if not -1 <= similarity <= 1:
            raise ValueError(f"similarity is {similarity}; expected a cosine in [-1, 1], at 1 nothing exits")
        self.set_knob(similarity)
        streams = check_streams(steps, streams)
        chosen = chosen_steps(steps, layers, "layers")
        self.first: set[tuple[str, str]] = set()  # step and stream: the first layer of the stream in its stage
        self.exits: set[tuple[str, str]] = set()  # where instances may exit
        self.skipped: set[tuple[str, str]] = set()  # what is skipped by those that have
        entered: set[tuple[str, str]] = set()  # stage and stream
        left: set[tuple[str, str]] = set()
        for step in steps:
            for name in filter(lambda name: is_chosen(name, streams), step.layers):
                place, of_stage = (step.name, name), (step.stage, name)
                if of_stage not in entered:
                    entered.add(of_stage)
                    self.first.add(place)
                    continue
                if step.name in chosen:
                    self.exits.add(place)
                    left.add(of_stage)
                if of_stage in left:
                    self.skipped.add(place)
        if not self.exits:
            raise UnsupportedBackboneError(
                f"streams is {list(streams)} and layers {layers}: none of these layers comes after another one of the same "
                "stream and stage, so that there is nothing to skip. Choose other layers or streams"
            )

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "early": {"similarity": 0.5}}

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        run: dict[str, Tensor] = {}
        carry = {}
        for name in step.layers:
            place, stream = (step.name, name), streams[name]
            if place not in self.first and _MEAN not in stream.carried:
                continue  # a stream that the config leaves out
            mean = stream.layout.mean(stream.x)
            gone = torch.zeros_like(mean[:, 0], dtype=torch.bool)
            if place not in self.first:
                gone = stream.carried[_GONE]
            if place in self.exits:
                gone = gone | (likeness(mean, stream.carried[_MEAN]) > self._limit())
            if place in self.skipped:
                run |= {f"{name}.attention": ~gone, f"{name}.mlp": ~gone}
            carry[name] = {_MEAN: mean, _GONE: gone}
        return Decision(run=run, carry=carry)

    def skips(self, step: LayerStep) -> frozenset[str]:
        names = [name for name in step.layers if (step.name, name) in self.skipped]
        return frozenset(f"{name}.{part}" for name in names for part in ("attention", "mlp"))

    def reads(self, step: LayerStep) -> frozenset[str]:
        return frozenset()

    def _limit(self) -> Tensor:
        """The cosine above which instances exit at present, []."""
        return 1 - self.progress * (1 - self.knob_value)


def likeness(state: Tensor, before: Tensor) -> Tensor:
    """Cosine of hidden states, at most 1, fp32 [B].

    Args:
        state: [B, D].
        before: [B, D].
    """
    return cosine_similarity(state.float(), before.float(), -1).clamp(max=1)  # rounded, it may exceed 1
