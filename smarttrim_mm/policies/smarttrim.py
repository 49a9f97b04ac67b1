"""SmartTrim (arXiv 2305.15033): learned, per-instance trimming of tokens and heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from smarttrim_mm.layers.views import LayerStep, modality
from smarttrim_mm.ops.gates import gumbel_keep, keep_at_least, threshold_keep
from smarttrim_mm.policies.base import Knob, Policy, check_layers, check_streams, chosen_steps, is_chosen
from smarttrim_mm.registry import POLICIES, TRIMMERS
from smarttrim_mm.structures import Decision, Layout, Scores, Streams, TokenStream
from smarttrim_mm.trimmers.fused import FusedStep, FusedTrimmers, zero_multiply_adds
from smarttrim_mm.utils.watch import WatchedTensor

_NOWHERE: tuple[dict[str, str], dict[str, str]] = ({}, {})  # a step that is read ahead has no trimmers


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
        min_tokens: Tokens that an instance keeps at least at each trimmed place, the best ones and protected ones counted, a
            number, or one by stream (ours); None: its protected tokens.

    Raises:
        ValueError: If a layer list names an unknown stage or layer, or a list is none, or the threshold, the temperature or
            ``min_tokens`` is out of range, or ``min_tokens`` names a stream that is not trimmed.
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
        min_tokens: int | Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(steps=steps)
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; expected a positive number")
        if noise < 0:
            raise ValueError(f"noise is {noise}; expected a number >= 0, 1 samples from the keep probabilities")
        self.temperature, self.noise = temperature, noise
        self.set_knob(threshold)
        check_layers("token_layers", token_layers)
        check_layers("head_layers", head_layers)
        streams = check_streams(steps, streams)
        self.min_tokens = _least(min_tokens, streams)
        chosen_tokens = chosen_steps(steps, token_layers, "token_layers") if token_trimmer else set()
        chosen_heads = chosen_steps(steps, head_layers, "head_layers") if head_trimmer else set()
        self.token_trimmers, self.head_trimmers = nn.ModuleDict(), nn.ModuleDict()
        self._places: dict[str, tuple[dict[str, str], dict[str, str]]] = {}  # names of trimmers by stream and by attention
        self._zeros: dict[str, int] = {}  # multiply-adds with the zeros of a step's stacked weights
        for step in steps:
            widths = step.widths()
            of_tokens, of_heads = self._places[step.name] = {}, {}
            for name, width in step.streams().items() if step.name in chosen_tokens else ():
                if is_chosen(name, streams):
                    sizes = {"width": width, "own": name, "guides": widths, "stable_init": stable_init}
                    of_tokens[name] = _key(step, name)
                    self.token_trimmers[of_tokens[name]] = TRIMMERS.build({**(token_trimmer or {}), **sizes})
            for name, layer in step.layers.items():
                for view in layer.attentions if step.name in chosen_heads else ():
                    served = {stream: widths[stream] for stream in dict.fromkeys((name, view.reads))}
                    sizes = {"heads": view.heads, "guides": served, "stable_init": stable_init}
                    of_heads[view.name] = _key(step, view.name)
                    self.head_trimmers[of_heads[view.name]] = TRIMMERS.build({**(head_trimmer or {}), **sizes})

            of_step = [self.token_trimmers[key] for key in of_tokens.values()]
            self._zeros[step.name] = zero_multiply_adds(of_step, [self.head_trimmers[key] for key in of_heads.values()])
        self._fused = FusedTrimmers()
        self._known_threshold: tuple[WatchedTensor, float] | None = None

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {
            "default": {},
            "untrained": {"stable_init": False},
            "heads only": {"stable_init": False, "token_trimmer": None},
            "at least 3": {"stable_init": False, "min_tokens": 3},
        }

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        if not any(self._places.get(step.name, _NOWHERE)):
            return Decision()
        logits = self._logits(step, streams, guides)
        return Decision(
            keep={name: self._gate_tokens(name, of_tokens, streams[name]) for name, of_tokens in logits.keep.items()},
            heads=logits.by_attention(self._gate),
        )

    def scores(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Scores:
        logits = self._logits(step, streams, guides)
        return Scores(
            keep={name: of_tokens.sigmoid() for name, of_tokens in logits.keep.items()},
            heads=logits.by_attention(torch.sigmoid),
            threshold=self.threshold,
        )

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        of_tokens, of_heads = self._places.get(step.name, _NOWHERE)
        return frozenset(of_tokens), frozenset(of_heads)

    def reads(self, step: LayerStep) -> frozenset[str]:
        trimmers = self._trimmers(step)
        return frozenset(name for name in step.guides if any(name in trimmer.guides for trimmer in trimmers))

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        of_tokens, of_heads = self._places.get(step.name, _NOWHERE)
        total: Tensor = torch.zeros_like(next(iter(counts.values())))
        for name, key in of_tokens.items():
            trimmer: Any = self.token_trimmers[key]
            total = total + trimmer.multiply_adds(counts[name])
        head_trimmers: list[Any] = [self.head_trimmers[key] for key in of_heads.values()]
        return total + sum(trimmer.multiply_adds() for trimmer in head_trimmers) + self._zeros.get(step.name, 0)

    def least_tokens(self, stream: str, layout: Layout) -> Tensor:
        return layout.floor().clamp(min=self._least_of(stream)).minimum(layout.full())

    def train(self, mode: bool = True) -> Self:
        self._fused.clear()  # weights may have been written past autograd in the meantime, as an average's are
        self._known_threshold = None
        return super().train(mode)

    def _trimmers(self, step: LayerStep) -> list[Any]:
        of_tokens, of_heads = self._places.get(step.name, _NOWHERE)
        trimmers: list[Any] = [self.token_trimmers[key] for key in of_tokens.values()]
        return trimmers + [self.head_trimmers[key] for key in of_heads.values()]

    def _logits(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> _Logits:
        """Keep-minus-drop logits of the step's tokens and heads: at inference of as many trimmers as can be at once."""
        of_tokens, of_heads = self._places.get(step.name, _NOWHERE)
        fused = None
        if not self.training and not torch.is_grad_enabled() and (of_tokens or of_heads):
            fused = self._fused.step(step.name, (self.token_trimmers, of_tokens), (self.head_trimmers, of_heads))
        logits = _Logits({}, {})
        if fused is not None:
            keep, stacked = fused(streams, guides)
            logits = _Logits(keep, {}, stacked, fused)
            of_tokens = {name: key for name, key in of_tokens.items() if name not in fused.tokens}
            of_heads = {name: key for name, key in of_heads.items() if name not in fused.heads}
        if of_tokens or of_heads:
            at_hand = {**guides, **{name: stream.guide() for name, stream in streams.items()}}
            logits.keep.update(
                {name: self.token_trimmers[key](streams[name], at_hand) for name, key in of_tokens.items() if name in streams}
            )
            logits.heads.update({name: self.head_trimmers[key](at_hand) for name, key in of_heads.items()})
        return logits

    def _gate(self, logits: Tensor) -> Tensor:
        return gumbel_keep(logits, self.temperature, self.noise) if self.training else threshold_keep(logits, self.threshold)

    def _gate_tokens(self, name: str, logits: Tensor, stream: TokenStream) -> Tensor:
        keep, least = self._gate(logits), self._least_of(name)
        return keep_at_least(keep, logits, stream.layout, least) if least > 1 else keep

    def _least_of(self, stream: str) -> int:
        """Tokens of a stream that an instance keeps at least, if it has so many."""
        return self.min_tokens.get(stream, self.min_tokens.get(modality(stream), 1)) if self.min_tokens else 1

    @property
    def threshold(self) -> float:
        """Keep probability needed at inference. It is read from the device only when it changed."""
        known = self._known_threshold
        if known is None or not known[0].unchanged(self.knob_value):
            known = self._known_threshold = (WatchedTensor(self.knob_value), self.get_knob())
        return known[1]


@dataclass(frozen=True)
class _Logits:
    """Keep-minus-drop logits of a step.

    Attributes:
        keep: Of tokens, by stream, [B, N] or [S].
        heads: By attention, [B, H], those that were not fused.
        stacked: Those that were, [B, H of all these attentions].
        fused: Splits them.
    """

    keep: dict[str, Tensor]
    heads: dict[str, Tensor]
    stacked: Tensor | None = None
    fused: FusedStep | None = None

    def by_attention(self, function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """An elementwise function of the heads' logits, by attention, [B, H] each."""
        found = {name: function(logits) for name, logits in self.heads.items()}
        if self.stacked is not None and self.fused is not None:
            found |= self.fused.by_attention(function(self.stacked))
        return found


def _least(min_tokens: int | Mapping[str, int] | None, streams: Sequence[str]) -> dict[str, int]:
    """Tokens to keep at least, by stream or modality."""
    if min_tokens is None:
        return {}
    by_stream = dict(min_tokens) if isinstance(min_tokens, Mapping) else dict.fromkeys(streams, min_tokens)
    if any(not isinstance(least, int) or least < 1 for least in by_stream.values()):
        raise ValueError(
            f"min_tokens is {min_tokens!r}; expected a number of tokens of at least 1, or such numbers by stream; None keeps "
            "protected tokens only"
        )
    unknown = sorted(name for name in by_stream if not is_chosen(name, streams))
    if unknown:
        raise ValueError(f"min_tokens names {unknown}; the policy trims {sorted(streams)}: name one of these streams")
    return by_stream


def _key(step: LayerStep, name: str) -> str:
    return f"{step.name}/{name}".replace(".", "_")  # a ModuleDict's keys hold no dots
