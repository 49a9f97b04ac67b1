"""SmartTrim (arXiv 2305.15033): learned, per-instance trimming of tokens and heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.ops.gates import gumbel_keep, threshold_keep
from smarttrim_mm.policies.base import Knob, Policy, check_streams, chosen_steps, is_chosen
from smarttrim_mm.registry import POLICIES, TRIMMERS
from smarttrim_mm.structures import Decision, Scores, Streams


@POLICIES.register_module()
class SmartTrim(Policy):
    """A token trimmer for each layer and stream, a head trimmer for each attention module.

    In training the decisions are hard Gumbel-softmax samples with straight-through gradients; at inference a token or head is
    kept where its keep probability reaches the threshold.

    Args:
        steps: The layers of the backbone.
        token_trimmer: Config of the token trimmer, or None: tokens are not trimmed.
        head_trimmer: Config of the head trimmer, or None: heads are not trimmed.
        streams: Streams whose tokens are trimmed, memories too; ``'image'`` stands for ``'image0'`` and ``'image1'`` as well;
            None: image and text, those that there are.
        token_layers: Per stage (``'image'``, ``'text'``, ``'fusion'``), the layer indices with token trimmers; stages left
            out: every layer. An empty list leaves a stage out.
        head_layers: Likewise for head trimmers.
        stable_init: Whether everything is kept at step 0 (the curriculum's stable initialisation).
        temperature: Gumbel temperature; a hook may move it.
        noise: Scale of the Gumbel noise: 1 samples from the keep probabilities. A hook that takes it to 0 lets training end
            with the decisions of inference (our choice, not known to be the paper's).
        threshold: Keep probability needed at inference, in (0, 1). Calibration may move it.

    Raises:
        ValueError: If a layer list names an unknown stage or layer, or the threshold or temperature is out of range.
    """

    knob = Knob("threshold", 0.0005, 0.9995)

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        token_trimmer: Mapping[str, Any] | None = {"type": "TokenTrimmer"},
        head_trimmer: Mapping[str, Any] | None = {"type": "HeadTrimmer"},
        streams: Sequence[str] | None = None,
        token_layers: Mapping[str, Sequence[int]] | None = None,
        head_layers: Mapping[str, Sequence[int]] | None = None,
        stable_init: bool = True,
        temperature: float = 1.0,
        noise: float = 1.0,
        threshold: float = 0.5,
    ) -> None:
        super().__init__(steps=steps)
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; expected a positive number")
        if noise < 0:
            raise ValueError(f"noise is {noise}; expected a number >= 0, 1 samples from the keep probabilities")
        self.temperature, self.noise = temperature, noise
        self.set_knob(threshold)
        streams = check_streams(steps, streams)
        chosen_tokens = chosen_steps(steps, token_layers, "token_layers") if token_trimmer else set()
        chosen_heads = chosen_steps(steps, head_layers, "head_layers") if head_trimmer else set()
        self.token_trimmers, self.head_trimmers = nn.ModuleDict(), nn.ModuleDict()
        for step in steps:
            widths = step.widths()
            for name, width in step.streams().items() if step.name in chosen_tokens else ():
                if is_chosen(name, streams):
                    sizes = {"width": width, "own": name, "guides": widths, "stable_init": stable_init}
                    self.token_trimmers[_key(step, name)] = TRIMMERS.build({**(token_trimmer or {}), **sizes})
            for name, layer in step.layers.items():
                for view in layer.attentions if step.name in chosen_heads else ():
                    served = {stream: widths[stream] for stream in dict.fromkeys((name, view.reads))}
                    sizes = {"heads": view.heads, "guides": served, "stable_init": stable_init}
                    self.head_trimmers[_key(step, view.name)] = TRIMMERS.build({**(head_trimmer or {}), **sizes})

        self._steps = chosen_tokens | chosen_heads

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {
            "default": {},
            "untrained": {"stable_init": False},
            "heads only": {"stable_init": False, "token_trimmer": None},
        }

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        keep, heads = self._logits(step, streams, guides)
        return Decision(
            keep={name: self._gate(logits) for name, logits in keep.items()},
            heads={name: self._gate(logits) for name, logits in heads.items()},
        )

    def scores(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Scores:
        keep, heads = self._logits(step, streams, guides)
        return Scores(
            keep={name: logits.sigmoid() for name, logits in keep.items()},
            heads={name: logits.sigmoid() for name, logits in heads.items()},
            threshold=self.threshold,
        )

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        views = [view.name for layer in step.layers.values() for view in layer.attentions]
        return (
            frozenset(name for name in step.streams() if _key(step, name) in self.token_trimmers),
            frozenset(name for name in views if _key(step, name) in self.head_trimmers),
        )

    def reads(self, step: LayerStep) -> frozenset[str]:
        streams, attentions = self.trims(step)
        trimmers: list[Any] = [self.token_trimmers[_key(step, name)] for name in streams]
        trimmers += [self.head_trimmers[_key(step, name)] for name in attentions]
        return frozenset(name for name in step.guides if any(name in trimmer.guides for trimmer in trimmers))

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        streams, attentions = self.trims(step)
        total: Tensor = torch.zeros_like(next(iter(counts.values())))
        for name in sorted(streams):
            trimmer: Any = self.token_trimmers[_key(step, name)]
            total = total + trimmer.multiply_adds(counts[name])
        head_trimmers: list[Any] = [self.head_trimmers[_key(step, name)] for name in attentions]
        return total + sum(trimmer.multiply_adds() for trimmer in head_trimmers)

    def _logits(
        self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Keep-minus-drop logits of the step's tokens, by stream, and of its heads, by attention."""
        if step.name not in self._steps:
            return {}, {}
        at_hand = {**guides, **{name: stream.guide() for name, stream in streams.items()}}
        keep = {
            name: self.token_trimmers[_key(step, name)](stream, at_hand)
            for name, stream in streams.items()
            if _key(step, name) in self.token_trimmers
        }
        heads = {
            view.name: self.head_trimmers[_key(step, view.name)](at_hand)
            for layer in step.layers.values()
            for view in layer.attentions
            if _key(step, view.name) in self.head_trimmers
        }
        return keep, heads

    def _gate(self, logits: Tensor) -> Tensor:
        return gumbel_keep(logits, self.temperature, self.noise) if self.training else threshold_keep(logits, self.threshold)

    @property
    def threshold(self) -> float:
        """Keep probability needed at inference."""
        return self.get_knob()


def _key(step: LayerStep, name: str) -> str:
    return f"{step.name}/{name}".replace(".", "_")  # a ModuleDict's keys hold no dots
