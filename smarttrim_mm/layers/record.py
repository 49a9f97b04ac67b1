"""What was decided and executed, and what it costs: multiply-adds of the whole model, per instance.

Decided compute follows from the decisions alone (kept tokens, kept heads) and is differentiable in them. The dense reference
counts unpadded tokens, so that padding saved is never credited as trimming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from smarttrim_mm.layers.views import AttentionView, LayerStep, LayerView, modality
from smarttrim_mm.structures import Layout, Merge


def attention_multiply_adds(view: AttentionView, n: Tensor, m: Tensor, heads: Tensor | int, sized: bool = False) -> Tensor:
    """Multiply-adds of one attention module.

    Args:
        view: The module.
        n: Tokens of its stream, [B]; all of them ask, or the first ones (``view.first``).
        m: Keys, [B].
        heads: Heads that are on, [B] or a number.
        sized: Whether keys are weighed by their sizes, in a channel of their own.

    Returns:
        [B]: projections of the kept heads, scores, and weighted sums.
    """
    own, other, d = view.q.inputs, view.k.inputs, view.head_width
    n = n if view.first is None else torch.full_like(n, view.first)
    return heads * (d * (n * own + 2 * m * other + n * view.out.out_features) + 2 * n * m * (d + sized))


def mlp_multiply_adds(layer: LayerView, n: Tensor) -> Tensor:
    """Multiply-adds of the feed-forward part of a layer on n tokens, [B]."""
    if layer.first_mlp is None or layer.first is None:
        return n * layer.mlp.multiply_adds
    return (n - layer.first) * layer.mlp.multiply_adds + layer.first * layer.first_mlp.multiply_adds


def decoder_multiply_adds(
    layers: Sequence[LayerView], memory: str, n: Tensor, m: Tensor, per_token: int, after: bool = False
) -> Tensor:
    """Multiply-adds of a decoder: linear in the tokens that it reads.

    Args:
        layers: Its layers.
        memory: Name of the stream that their cross-attentions read.
        n: Tokens of each text, fp32 [A].
        m: Tokens that it reads, likewise.
        per_token: Multiply-adds per token of a text outside the layers.
        after: Whether the texts come after the stream, so that what attends to it attends to them too.

    Returns:
        [A].
    """
    total = n * per_token
    for layer in layers:
        for view in layer.attentions:
            read = m + n if after else m
            total = total + attention_multiply_adds(view, n, read if view.reads == memory else n, view.heads)
        total = total + mlp_multiply_adds(layer, n)
    return total


@dataclass(frozen=True)
class Merged:
    """Which tokens merged, over the original positions.

    Attributes:
        into: Position that each merged into, its own elsewhere, long [B, N].
        weight: Of each in its mean, fp32 [B, N].
        sized: Whether sizes were carried on.
    """

    into: Tensor
    weight: Tensor
    sized: bool

    @classmethod
    def of(cls, merge: Merge, layout: Layout) -> Merged:
        """A merge of a stream's tokens, laid out."""
        size = layout.kept_grid().shape[1]
        own = torch.arange(size, device=layout.ids.device).expand(layout.batch_size, size)
        into = layout.to_grid(merge.into, -1)
        return cls(torch.where(into < 0, own, into), layout.to_grid(merge.weight.detach().float(), 0.0), merge.sized)


@dataclass(frozen=True)
class StepRecord:
    """The record of one step.

    Attributes:
        step: The step.
        before: Per stream, its layout before the decision (what a policy scored).
        tokens: Per stream, its layout after the decision (what the layer ran on).
        heads: Per attention that was decided on, the heads' gates [B, H].
        executed: Multiply-adds of the tensors that were really multiplied, for the whole batch, policy not included.
        rows: Instance of this record that each image-text pair used, long [B], or the instances, all of which count, [B, k];
            None: one each.
        after: Per stream, its layout after what was decided between attention and MLP (what the MLP ran on), if anything was.
        run: Per part of a layer (``'image.mlp'``) that instances may skip, the gates [B].
        merged: Per stream, which tokens merged between attention and MLP.
    """

    step: LayerStep
    before: Mapping[str, Layout]
    tokens: Mapping[str, Layout]
    heads: Mapping[str, Tensor]
    executed: int
    rows: Tensor | None = None
    after: Mapping[str, Layout] = field(default_factory=dict)
    run: Mapping[str, Tensor] = field(default_factory=dict)
    merged: Mapping[str, Merged] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        return next(iter(self.before.values())).batch_size

    def cost(
        self,
        counts: Mapping[str, Tensor],
        heads: Mapping[str, Any],
        after: Mapping[str, Tensor],
        run: Mapping[str, Any],
        sized: frozenset[str] = frozenset(),
    ) -> Tensor:
        """Multiply-adds per instance, [B].

        Args:
            counts: Tokens of each stream that attentions run on, [B] each.
            heads: Heads that are on, by attention, a number or [B]; else all.
            after: Tokens of each stream that MLPs run on, [B] each.
            run: Share of a part of a layer that is run, a number or [B]; else all of it.
            sized: Streams whose tokens are weighed by their sizes.
        """
        total = torch.zeros_like(next(iter(counts.values())))
        for stream, layer in self.step.layers.items():
            n, attention = counts[stream], torch.zeros_like(total)
            for view in layer.attentions:
                on, weighed = heads.get(view.name, view.heads), view.reads in sized
                attention = attention + attention_multiply_adds(view, n, counts[view.reads], on, weighed)
            attention = attention + n * sum(join.merge.weight.numel() for join in layer.joins if join.merge is not None)
            mlp = mlp_multiply_adds(layer, after[stream])
            total = total + attention * run.get(f"{stream}.attention", 1) + mlp * run.get(f"{stream}.mlp", 1)
        return total

    def decided(self) -> Tensor:
        """Multiply-adds of the layer on what was kept, [B]."""
        counts = {name: layout.counts() for name, layout in self.tokens.items()}
        after = {name: self.after[name].counts() if name in self.after else count for name, count in counts.items()}
        heads = {name: gate.float().sum(1) for name, gate in self.heads.items()}
        sized = frozenset(name for name, layout in self.tokens.items() if layout.sizes is not None)
        return self.cost(counts, heads, after, {name: gate.float() for name, gate in self.run.items()}, sized)

    def dense(self) -> Tensor:
        """Multiply-adds of the whole layer on every real token, [B]."""
        counts = {name: layout.full() for name, layout in self.tokens.items()}
        return self.cost(counts, {}, counts, {})


@dataclass(frozen=True)
class LinearRecord:
    """What runs outside the layers, linear in the tokens of a stream: embeddings, transforms, poolers, heads, decoders.

    Attributes:
        name: ``'<part>.<what>'`` (``'image.patches'``); a part that is a stage is counted with that stage's layers.
        stream: The stream whose tokens it ran on; None: once per instance.
        layout: Layout of that stream at that point; None likewise.
        multiply_adds: Per token (or per pair); of a decoder by instance, [B].
        executed: Multiply-adds that were really executed, for the whole batch; of a decoder on the device, [].
        rows: As in :class:`StepRecord`.
        fixed: Multiply-adds of each instance whatever its tokens, [B]; None: none.
    """

    name: str
    stream: str | None
    layout: Layout | None
    multiply_adds: float | Tensor
    executed: int | Tensor
    rows: Tensor | None = None
    fixed: Tensor | None = None

    def cost(self, counts: Callable[[Layout], Tensor], like: Tensor) -> Tensor:
        """Multiply-adds per instance, [B], of the tokens that ``counts`` makes of the layout."""
        if self.layout is None:
            return torch.ones_like(like, dtype=torch.float32) * self.multiply_adds
        cost = counts(self.layout) * self.multiply_adds
        return cost if self.fixed is None else cost + self.fixed


@dataclass(frozen=True)
class AheadRecord:
    """Layers that ran whole for the policy's sake: a text that was read ahead, to guide the image encoder.

    Attributes:
        name: For tables.
        multiply_adds: Per instance, fp32 [B].
        executed: Multiply-adds that were really executed, for the whole batch.
        rows: As in :class:`StepRecord`.
    """

    name: str
    multiply_adds: Tensor
    executed: int
    rows: Tensor | None = None


@dataclass(frozen=True)
class PlannedCost:
    """What one entry of a record would cost if a share of what may be cut were kept.

    Attributes:
        entry: The entry.
        tokens: Per stream, the tokens it would run on, [B].
        heads: Per attention that may be cut, the heads that would be on, a number or [B].
        own: Multiply-adds of the entry itself, per sample, fp32 [G].
        policy: Multiply-adds of deciding on it, likewise.
    """

    entry: StepRecord | LinearRecord | AheadRecord
    tokens: Mapping[str, Tensor]
    heads: Mapping[str, Tensor | float]
    own: Tensor
    policy: Tensor


class CountsPolicies(Protocol):
    """What may be cut, and what deciding costs: the part of a policy that a plan needs."""

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float: ...

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]: ...

    def reads(self, step: LayerStep) -> frozenset[str]: ...

    def reduces(self, step: LayerStep) -> frozenset[str]: ...

    def skips(self, step: LayerStep) -> frozenset[str]: ...


class RecordedPolicy(CountsPolicies, Protocol):
    """The part of a policy that a record needs."""

    def least_tokens(self, stream: str, layout: Layout) -> Tensor: ...


class PlansCuts(Protocol):
    """How much a plan leaves where something may be cut."""

    def tokens(self, step: LayerStep, stream: str, layout: Layout) -> Tensor:
        """Tokens of a stream that are left once this step has cut it, [B]."""
        ...

    def heads(self, step: LayerStep, view: AttentionView, ids: Tensor) -> Tensor | float:
        """Heads of an attention that are on, a number or one for each of the instances (``ids``, [B])."""
        ...


@dataclass(frozen=True)
class SameShare:
    """The same share everywhere: of the real tokens that are not protected, and of all heads.

    Attributes:
        share: In [0, 1].
    """

    share: float

    def tokens(self, step: LayerStep, stream: str, layout: Layout) -> Tensor:
        least = layout.floor()
        return least + self.share * (layout.full() - least)

    def heads(self, step: LayerStep, view: AttentionView, ids: Tensor) -> float:
        return self.share * view.heads


@dataclass(frozen=True)
class _Least(SameShare):
    """What a policy keeps at least: no head, and of tokens what it says.

    Attributes:
        policy: The policy.
    """

    policy: RecordedPolicy

    def tokens(self, step: LayerStep, stream: str, layout: Layout) -> Tensor:
        return self.policy.least_tokens(stream, layout)


@dataclass
class TrimRecord:
    """The record of one forward pass, in the order of execution.

    Compute is that of unshared samples: an image that several samples share is counted for each of them. Within a sample of
    several pairs, what its pairs share (the text of two images) is counted once.

    Attributes:
        sample_ids: Identity of each image-text pair, long [B].
        policy: Counts its own compute, and says what it can cut.
        entries: What ran.
        pairs_per_sample: Consecutive pairs that make one sample; G = B / pairs_per_sample.
        packed: Whether what was dropped was left out; else it was masked, in dense shapes.
    """

    sample_ids: Tensor
    policy: RecordedPolicy
    entries: list[StepRecord | LinearRecord | AheadRecord] = field(default_factory=list)
    pairs_per_sample: int = 1
    packed: bool = True

    @property
    def samples(self) -> int:
        """Number of samples G."""
        return len(self.sample_ids) // self.pairs_per_sample

    @property
    def steps(self) -> list[StepRecord]:
        return [entry for entry in self.entries if isinstance(entry, StepRecord)]

    def multiply_adds(self) -> Tensor:
        """Decided compute of the whole model, the policy's own included, per sample, fp32 [G]."""
        total = self._zeros()
        for entry in self.entries:
            if isinstance(entry, LinearRecord):
                cost = entry.cost(lambda layout: layout.counts(), self.sample_ids)
            elif isinstance(entry, AheadRecord):
                cost = entry.multiply_adds
            else:
                cost = entry.decided() + self._overhead(entry)
            total = total + self._per_sample(cost, entry.rows)
        return total

    def dense_multiply_adds(self) -> Tensor:
        """Compute of the same model on every real token with every head, without a policy, per sample, fp32 [G]."""
        total = self._zeros()
        for entry in self.entries:
            if isinstance(entry, AheadRecord):
                continue
            if isinstance(entry, LinearRecord):
                cost = entry.cost(lambda layout: layout.full(), self.sample_ids)
            else:
                cost = entry.dense()
            total = total + self._per_sample(cost, entry.rows)
        return total

    def least_multiply_adds(self) -> Tensor:
        """Compute if the policy kept as few tokens as it can and no head that it decides on, per sample, fp32 [G]."""
        total = self._zeros()
        for planned in self.plan(self.policy, _Least(0.0, self.policy)):
            total = total + planned.own + planned.policy
        return total

    def plan(self, cuts: CountsPolicies, share: float | PlansCuts) -> list[PlannedCost]:
        """What each entry would cost if, wherever tokens or heads may be cut, a given part of them were kept.

        A stream is cut from the first step on where it may be. What was decided in this pass plays no part.

        Args:
            cuts: Says what may be cut, and what deciding costs.
            share: The same share everywhere, in [0, 1], of the instances that run what they may skip too; 0 leaves protected
                tokens and no head. Or what says how much is left, of layers that no instance skips.
        """
        kept = SameShare(share) if isinstance(share, float | int) else share
        turns = kept.share if isinstance(kept, SameShare) else 1.0
        planned = []
        cut: dict[str, LayerStep] = {}  # by stream, where it was cut last

        def left(name: str | None, layout: Layout) -> Tensor:
            """A stream that was cut as 'image' may have gone on as 'image0'."""
            for stream in (name, modality(name)) if name is not None else ():
                if stream in cut:
                    return kept.tokens(cut[stream], stream, layout)
            return layout.full()

        for entry in self.entries:
            if isinstance(entry, LinearRecord):
                stream = entry.stream
                tokens = {stream: left(stream, entry.layout)} if stream and entry.layout else {}
                own = entry.cost(lambda layout: left(stream, layout), self.sample_ids)  # noqa: B023
                planned.append(PlannedCost(entry, tokens, {}, self._per_sample(own, entry.rows), self._zeros()))
                continue
            if isinstance(entry, AheadRecord):
                guided = cuts is self.policy or any(cuts.reads(step.step) for step in self.steps)
                ahead = self._per_sample(entry.multiply_adds, entry.rows) if guided else self._zeros()
                planned.append(PlannedCost(entry, {}, {}, self._zeros(), ahead))
                continue
            streams, attentions = cuts.trims(entry.step)
            cut = {name: step for name, step in cut.items() if name not in entry.step.anew}
            scored = {name: left(name, layout) for name, layout in entry.before.items()}
            cut |= dict.fromkeys(streams, entry.step)
            tokens = {name: left(name, layout) for name, layout in entry.tokens.items()}
            views = [view for layer in entry.step.layers.values() for view in layer.attentions]
            ids = next(iter(entry.before.values())).ids
            heads = {view.name: kept.heads(entry.step, view, ids) for view in views if view.name in attentions}
            cut |= dict.fromkeys(cuts.reduces(entry.step), entry.step)
            after = {name: left(name, layout) for name, layout in entry.tokens.items()}
            own = entry.cost(tokens, heads, after, dict.fromkeys(cuts.skips(entry.step), turns))
            decision = torch.zeros_like(own) + cuts.multiply_adds(entry.step, scored)
            planned.append(
                PlannedCost(entry, tokens, heads, self._per_sample(own, entry.rows), self._per_sample(decision, entry.rows))
            )
        return planned

    def executed_multiply_adds(self) -> float:
        """Multiply-adds that were really executed for the batch, the policy's own included, mean per sample."""
        total = 0.0
        there = []  # what is on the device, read at once
        for entry in self.entries:
            if isinstance(entry.executed, Tensor):
                there.append(entry.executed)
            else:
                total += entry.executed
            if isinstance(entry, StepRecord):
                held = {name: layout.held() for name, layout in entry.before.items()}
                own = self.policy.multiply_adds(entry.step, held)
                if isinstance(own, Tensor):
                    there.append(own.expand(entry.batch_size).sum())
                else:
                    total += own * entry.batch_size
        if there:
            total += sum(torch.stack(there).double().tolist())
        return total / self.samples

    def summary(self) -> dict[str, Tensor]:
        """What each sample took, by name, fp32 [G] each.

        Multiply-adds: ``multiply_adds`` (decided), ``dense_multiply_adds``, ``executed_multiply_adds`` (the batch's mean for
        all). Ratios in 0-1: ``kept/<step>/<stream>``, ``heads/<step>/<attention>`` and ``runs/<step>/<part>``.
        """
        decided = self.multiply_adds()
        return {
            "multiply_adds": decided,
            "dense_multiply_adds": self.dense_multiply_adds(),
            "executed_multiply_adds": torch.full_like(decided, self.executed_multiply_adds()),
            **{f"kept/{key}": ratio for key, ratio in self.kept().items()},
            **{f"heads/{key}": ratio for key, ratio in self.heads().items()},
            **{f"runs/{key}": ratio for key, ratio in self.runs().items()},
        }

    def kept(self) -> dict[str, Tensor]:
        """Per ``'<step>/<stream>'`` (``'image.3/image'``), the kept share of the real tokens, fp32 [G]."""
        return self._of_streams(lambda layout: layout.counts() / layout.full())

    def kept_within(self) -> dict[str, Tensor]:
        """Likewise, what a layer's MLP saw, of the streams that the policy may cut between attention and MLP."""
        return self._means(
            (f"{entry.step.name}/{name}", entry.after[name].counts() / entry.after[name].full(), entry.rows)
            for entry in self.steps
            for name in sorted(self.policy.reduces(entry.step) & entry.after.keys())
        )

    def kept_tokens(self) -> dict[str, Tensor]:
        """Likewise, the number of the kept tokens; of what a sample has several instances of, the mean."""
        return self._of_streams(lambda layout: layout.counts())

    def real_tokens(self) -> dict[str, Tensor]:
        """Likewise, the number of the real tokens."""
        return self._of_streams(lambda layout: layout.full())

    def heads(self) -> dict[str, Tensor]:
        """Per ``'<step>/<attention>'`` (``'fusion.1/text.cross'``), the share of heads that are on, fp32 [G]."""
        return self._means(
            (f"{entry.step.name}/{name}", gate.float().mean(1), entry.rows)
            for entry in self.steps
            for name, gate in entry.heads.items()
        )

    def per_sample(self, entry: StepRecord, cost: Tensor) -> Tensor:
        """Sums compute by instance of an entry, [B], over samples: [G]."""
        return self._per_sample(cost, entry.rows)

    def runs(self) -> dict[str, Tensor]:
        """Per ``'<step>/<part>'`` (``'image.3/image.mlp'``) that may be skipped, 1 where it ran, fp32 [G]; a sample's mean."""
        return self._means(
            (f"{entry.step.name}/{part}", gate.float(), entry.rows) for entry in self.steps for part, gate in entry.run.items()
        )

    def _overhead(self, entry: StepRecord) -> Tensor | float:
        return self.policy.multiply_adds(entry.step, {name: layout.counts() for name, layout in entry.before.items()})

    def _zeros(self) -> Tensor:
        return torch.zeros(self.samples, dtype=torch.float32, device=self.sample_ids.device)

    def _of_streams(self, measure: Callable[[Layout], Tensor]) -> dict[str, Tensor]:
        return self._means(
            (f"{entry.step.name}/{name}", measure(layout), entry.rows)
            for entry in self.steps
            for name, layout in entry.tokens.items()
        )

    def _means(self, entries: Iterable[tuple[str, Tensor, Tensor | None]]) -> dict[str, Tensor]:
        """Means over a sample's instances by name, of values [B] and their rows: a step that ran twice has two entries."""
        used: dict[str, list[Tensor]] = {}
        for name, values, rows in entries:
            values = values if rows is None else values[rows]
            used.setdefault(name, []).append(values.view(len(values), -1))
        return {name: torch.cat(values, 1).unflatten(0, (self.samples, -1)).flatten(1).mean(1) for name, values in used.items()}

    def _per_sample(self, cost: Tensor, rows: Tensor | None) -> Tensor:
        """Sums the compute of instances [B], or of those that the pairs use, over samples: [G]."""
        cost = cost if rows is None else cost[rows]
        if rows is not None and rows.dim() > 1:
            cost, rows = cost.sum(1), None
        if self.pairs_per_sample == 1:
            return cost
        cost = cost.unflatten(0, (self.samples, -1))
        if rows is not None:
            of_sample = rows.unflatten(0, (self.samples, -1))
            cost = cost / (of_sample[:, :, None] == of_sample[:, None]).sum(2)  # counted once
        return cost.sum(1)
