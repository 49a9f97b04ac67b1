"""AdaViT (Meng et al., CVPR 2022, arXiv 2111.15668): which tokens, heads and sub-layers an input uses, by linear maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.ops.gates import gumbel_keep
from smarttrim_mm.policies.base import Knob, Policy, check_streams, chosen_steps, is_chosen
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Scores, Streams

PARTS = ("attention", "mlp")
_STABLE_LOGIT = 5.0  # keep minus drop at first: 0.7 % of the samples drop


@POLICIES.register_module()
class AdaViT(Policy):
    """Before each layer, linear maps decide on its tokens, its heads, and whether its attention and its MLP run at all.

    A map of the token itself says whether it stays; maps of the class token say which heads run and which of the two
    sub-layers. Trained, decisions are hard Gumbel-sigmoid samples with straight-through gradients; at inference a threshold.
    Of the published policies it is SmartTrim's closest learned rival: the same three ingredients, without the other modality.

    The usage loss is 2 |mean usage - target| of tokens, of heads and of sub-layers each, with targets of 0.5; the temperature
    is 5, the threshold 0.5: so the published code. ``usage_weight=0`` leaves it to a budget loss of the model, which sets all
    learned policies the same target (``ComputeBudget``).

    Ours: a token once dropped stays dropped; texts and cross-attentions are decided on too, each by the guide token of its
    own stream; protected tokens are neither dropped nor counted; the targets fall from 1 with the curriculum; at first
    everything is kept (``stable_init``). The published code's further terms (diversity of heads and of layers, a least share of
    tokens) are left out.

    Args:
        steps: The layers of the backbone.
        streams: Streams whose tokens, heads and sub-layers are decided on, tokens of memories too; ``'image'`` stands for
            ``'image0'`` and ``'image1'`` as well; None: image and text, those that there are.
        token_layers: Per stage, the layer indices before which tokens are dropped; stages left out: every layer. An empty list
            leaves a stage out.
        head_layers: Likewise where heads are decided on.
        part_layers: Likewise where sub-layers are.
        token_target: Mean share of tokens that the usage loss aims at, in (0, 1].
        head_target: Likewise of heads.
        part_target: Likewise of the sub-layers that run.
        usage_weight: Weight of the usage loss.
        stable_init: Whether everything is kept at step 0.
        temperature: Temperature of the gates' gradients; a hook may move it.
        noise: Scale of the Gumbel noise; a hook may move it.
        threshold: Keep probability needed at inference, in (0, 1). Calibration may move it.

    Raises:
        ValueError: If a number is out of its range, or a stream, stage or layer is unknown.
    """

    knob = Knob("threshold", 0.0005, 0.9995)

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        streams: Sequence[str] | None = None,
        token_layers: Mapping[str, Sequence[int]] | None = None,
        head_layers: Mapping[str, Sequence[int]] | None = None,
        part_layers: Mapping[str, Sequence[int]] | None = None,
        token_target: float = 0.5,
        head_target: float = 0.5,
        part_target: float = 0.5,
        usage_weight: float = 2.0,
        stable_init: bool = True,
        temperature: float = 5.0,
        noise: float = 1.0,
        threshold: float = 0.5,
    ) -> None:
        super().__init__(steps=steps)
        self.targets = {"token": token_target, "head": head_target, "part": part_target}
        for kind, target in self.targets.items():
            if not 0 < target <= 1:
                raise ValueError(f"{kind}_target is {target}; expected a number in (0, 1], 1 uses everything")
        if usage_weight < 0:
            raise ValueError(f"usage_weight is {usage_weight}; expected a number >= 0, 0 leaves the usage loss out")
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; expected a positive number")
        if noise < 0:
            raise ValueError(f"noise is {noise}; expected a number >= 0, 1 samples from the keep probabilities")
        self.usage_weight, self.temperature, self.noise = usage_weight, temperature, noise
        self.set_knob(threshold)
        streams = check_streams(steps, streams)
        of_tokens, of_heads, of_parts = (
            chosen_steps(steps, layers, argument)
            for argument, layers in (
                ("token_layers", token_layers),
                ("head_layers", head_layers),
                ("part_layers", part_layers),
            )
        )
        self.tokens, self.heads, self.parts = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for step in steps:
            for name, width in step.streams().items():
                if not is_chosen(name, streams):
                    continue
                if step.name in of_tokens:
                    self.tokens[_key(step, name)] = _scorer(width, 1, stable_init)
                if name not in step.layers:
                    continue
                for view in step.layers[name].attentions if step.name in of_heads else ():
                    self.heads[_key(step, view.name)] = _scorer(width, view.heads, stable_init)
                if step.name in of_parts:
                    self.parts[_key(step, name)] = _scorer(width, len(PARTS), stable_init)

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "untrained": {"stable_init": False}}

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        own = {name: streams[name].guide() for name in step.layers if name in streams}
        run: dict[str, Tensor] = {}
        for name, scorer in _of(step, self.parts, step.layers).items():
            run.update(zip([f"{name}.{part}" for part in PARTS], self._gate(scorer(own[name])).unbind(1), strict=True))
        return Decision(
            keep={name: self._gate(logits) for name, logits in self._token_logits(step, streams).items()},
            heads={name: self._gate(logits) for name, logits in self._head_logits(step, own).items()},
            run=run,
        )

    def scores(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Scores:
        own = {name: streams[name].guide() for name in step.layers if name in streams}
        return Scores(
            keep={name: logits.sigmoid() for name, logits in self._token_logits(step, streams).items()},
            heads={name: logits.sigmoid() for name, logits in self._head_logits(step, own).items()},
            threshold=self.get_knob(),
        )

    def losses(self, record: TrimRecord) -> dict[str, Tensor]:
        """``usage_weight`` times the distance of each kind's mean usage, over layers and instances, from its target."""
        if self.usage_weight == 0:
            return {}
        usage: dict[str, list[Tensor]] = {kind: [] for kind in self.targets}
        for entry in record.steps:
            for name in self.trims(entry.step)[0]:
                layout = entry.tokens[name]
                free = layout.full() - layout.floor()
                share = (layout.counts() - layout.floor()) / free.clamp(min=1)
                usage["token"].append(torch.where(free > 0, share, 1.0).mean())  # a text may have no words
            usage["head"] += [gate.float().mean() for gate in entry.heads.values()]
            usage["part"] += [gate.float().mean() for gate in entry.run.values()]
        losses = {}
        for kind, means in usage.items():
            target = 1 + self.progress * (self.targets[kind] - 1)
            if means:
                losses[f"loss_{kind}_usage"] = self.usage_weight * (torch.stack(means).mean() - target).abs()
        return losses

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(_of(step, self.tokens, step.streams())), frozenset(_of(step, self.heads, _attentions(step)))

    def skips(self, step: LayerStep) -> frozenset[str]:
        return frozenset(f"{name}.{part}" for name in _of(step, self.parts, step.layers) for part in PARTS)

    def reads(self, step: LayerStep) -> frozenset[str]:
        return frozenset()

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        total: Tensor | float = 0.0
        for name, scorer in _of(step, self.tokens, step.streams()).items():
            total = total + counts[name] * scorer.weight.numel()
        once = [*_of(step, self.heads, _attentions(step)).values(), *_of(step, self.parts, step.layers).values()]
        return total + sum(scorer.weight.numel() for scorer in once)

    def _token_logits(self, step: LayerStep, streams: Streams) -> dict[str, Tensor]:
        """Of the tokens of each stream, [B, N] or [S]."""
        scorers = _of(step, self.tokens, streams)
        return {name: scorer(streams[name].x).squeeze(-1).float() for name, scorer in scorers.items()}

    def _head_logits(self, step: LayerStep, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the heads of each attention, [B, H]."""
        of = _attentions(step)
        return {name: scorer(own[of[name]]).float() for name, scorer in _of(step, self.heads, of).items()}

    def _gate(self, logits: Tensor) -> Tensor:
        if self.training:
            return gumbel_keep(logits, self.temperature, self.noise)
        return logits.float() >= self.knob_value.logit()


def _scorer(width: int, outputs: int, stable_init: bool) -> nn.Linear:
    scorer = nn.Linear(width, outputs)
    nn.init.constant_(scorer.bias, _STABLE_LOGIT if stable_init else 0.0)
    if stable_init:
        nn.init.zeros_(scorer.weight)
    return scorer


def _attentions(step: LayerStep) -> dict[str, str]:
    """Of each attention of the step, the stream that asks."""
    return {view.name: name for name, layer in step.layers.items() for view in layer.attentions}


def _of(step: LayerStep, scorers: nn.ModuleDict, names: Mapping[str, Any]) -> dict[str, Any]:
    """The scorers of a step, of those streams or attentions that have one, by name."""
    return {name: scorers[_key(step, name)] for name in names if _key(step, name) in scorers}


def _key(step: LayerStep, name: str) -> str:
    return f"{step.name}/{name}".replace(".", "_")  # a ModuleDict's keys hold no dots
