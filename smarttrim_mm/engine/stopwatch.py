"""Times what a policy's decisions take and save, layer by layer, while a model runs whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from smarttrim_mm.engine.machine import synchronizer
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.policies.imposed import ImposedShares
from smarttrim_mm.structures import Decision, Streams, TokenStream


@dataclass
class LayerTimes:
    """Measurements of one layer, one of each a batch, ms a batch.

    Attributes:
        step: The layer.
        tokens: Tokens per instance of each stream that the policy cuts in this stage, nothing being dropped.
        decide_tokens: Deciding on tokens, and cutting them.
        decide_heads: Deciding on heads.
        heads_off: What the layer takes less with heads off.
        per_token: By stream, what it takes less for each missing token per instance.
    """

    step: LayerStep
    tokens: dict[str, float] = field(default_factory=dict)
    decide_tokens: list[float] = field(default_factory=list)
    decide_heads: list[float] = field(default_factory=list)
    heads_off: list[float] = field(default_factory=list)
    per_token: dict[str, list[float]] = field(default_factory=dict)

    def ms_per_token(self, stream: str) -> float:
        """The median; 0 where noise says less."""
        return max(0.0, median(self.per_token[stream])) if stream in self.per_token else 0.0


class Stopwatch(Policy):
    """Keeps everything, and times what a policy's decisions would take and save at each layer.

    Args:
        model: Gives the device.
        tokens: Decides on tokens alone.
        heads: Decides on heads alone.
        shares: Which heads are off.
        clock: Gives seconds.

    Attributes:
        running: Whether it notes times; otherwise it only warms up.
        times: By the names of steps.
    """

    def __init__(
        self,
        model: TrimmedVLM,
        tokens: Policy,
        heads: Policy,
        *,
        shares: ImposedShares,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(steps=())
        self.tokens, self.heads, self.shares = tokens, heads, shares
        self.running = True
        self.times: dict[str, LayerTimes] = {}
        self._wait, self._clock = synchronizer(model), clock
        self._cut: dict[str, set[str]] = {}  # streams by stage
        for step in (step for stage in model.backbone.steps.values() for step in stage):
            self._cut.setdefault(step.stage, set()).update(tokens.trims(step)[0])

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        names, attentions = self.tokens.trims(step)[0], self.heads.trims(step)[1]
        found = LayerTimes(step) if not self.running else self.times.setdefault(step.name, LayerTimes(step))
        halves = {name: torch.rand(len(stream.x), device=stream.x.device) < 0.5 for name, stream in streams.items()}

        def decide_on_tokens() -> list[TokenStream]:
            self.tokens.before_layer(step, streams, guides)
            return [streams[name].select(halves[name]) for name in sorted(names)]

        if names:
            found.decide_tokens.append(self._ms(decide_on_tokens))
        if attentions:
            found.decide_heads.append(self._ms(lambda: self.heads.before_layer(step, streams, guides)))
        cut = sorted(self._cut[step.stage] & set(streams))
        whole = self._layer_ms(step, streams, guides, Decision()) if cut or attentions else 0.0
        for name in cut:
            half = streams[name].select(halves[name])
            batch = half.layout.batch_size
            missing = (len(streams[name].x) - len(half.x)) / batch
            found.tokens[name] = len(streams[name].x) / batch
            spent = self._layer_ms(step, {**streams, name: half}, guides, Decision())
            found.per_token.setdefault(name, []).append((whole - spent) / missing if missing else 0.0)
        if attentions:
            ids = next(iter(streams.values())).layout.ids
            views = [view for layer in step.layers.values() for view in layer.attentions if view.name in attentions]
            off = Decision(heads={view.name: self.shares.which_heads(step, view, ids) for view in views})
            found.heads_off.append(whole - self._layer_ms(step, streams, guides, off))
        return Decision()

    def reads(self, step: LayerStep) -> frozenset[str]:
        return self.tokens.reads(step) | self.heads.reads(step)

    def _layer_ms(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor], decision: Decision) -> float:
        ids = next(iter(streams.values())).layout.ids
        execution = Execution(_Fixed(decision), sample_ids=ids, kind="packed")
        return self._ms(lambda: execution.run([step], streams, guides=guides))

    def _ms(self, run: Callable[[], object]) -> float:
        self._wait()
        begin = self._clock()
        run()
        self._wait()
        return 1000 * (self._clock() - begin)


class _Fixed(Policy):
    def __init__(self, decision: Decision) -> None:
        super().__init__(steps=())
        self.decision = decision

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        return self.decision
