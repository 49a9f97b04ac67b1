"""ToMe-style execution of a model (Bolya et al., ICLR 2023, arXiv 2210.09461).

Every layer of the image encoder merges the same number of tokens of every instance, so that shapes are dense, without padding.
It stands beside the others in benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from smarttrim_mm.layers.compacted import CompactedExecution, CompactedLayout
from smarttrim_mm.layers.merging_layer import check_merges, run_merging_layer
from smarttrim_mm.layers.record import StepRecord, attention_multiply_adds
from smarttrim_mm.layers.token_wise import TokenWise
from smarttrim_mm.layers.views import AttentionView, LayerStep
from smarttrim_mm.ops.merging import matching_multiply_adds, merge_schedule
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import Layout, TokenStream


class TokenMerging(Policy):
    """How many tokens merge in each layer of the image encoder. Text, heads and the fusion encoder are left alone.

    A record says what is left behind a layer's matching. What the others cost before they merge, their part in the layer's
    attention, counts as the policy's own, together with the matching.

    Args:
        steps: The layers of the image encoder.
        tokens: Tokens of an image N, the class token included.
        per_layer: Tokens that merge in a layer, see :func:`~smarttrim_mm.ops.merging.merge_schedule`.

    Raises:
        ValueError: If a layer is not that of a ViT.
    """

    def __init__(self, *, steps: Sequence[LayerStep], tokens: int, per_layer: float) -> None:
        super().__init__(steps=())
        self.views: dict[str, AttentionView] = {}
        for step in steps:
            ((_, layer),) = step.layers.items()
            self.views[step.name] = check_merges(step.name, layer)
        self.schedule = merge_schedule(tokens, len(steps), per_layer)
        self.counts = dict(zip(self.views, self.schedule, strict=True))
        self.gone = dict(zip(self.views, accumulate(self.schedule), strict=True))

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(step.layers if step.name in self.counts else ()), frozenset()

    def reads(self, step: LayerStep) -> frozenset[str]:
        return frozenset()  # no text is read ahead for its sake

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        count = self.counts.get(step.name, 0)
        if count == 0:
            return 0.0
        view = self.views[step.name]
        before = counts[view.reads]
        left = before - count
        whole, rest = (attention_multiply_adds(view, n, n, view.heads) for n in (before, left))
        return matching_multiply_adds(before, view.head_width) + whole - rest

    def tokens(self, step: LayerStep, stream: str, layout: Layout) -> Tensor:
        """Tokens that are left behind a layer, fp32 [B]."""
        return layout.full() - self.gone[step.name]

    def heads(self, step: LayerStep, view: AttentionView, ids: Tensor) -> float:
        """All of them."""
        return float(view.heads)


class MergingExecution(CompactedExecution):
    """An execution under :class:`TokenMerging`. Sizes count inside the image encoder alone.

    Args:
        merging: Says how many tokens merge.
        sample_ids: Identity of each image-text pair, long [B].
        pairs_per_sample: Consecutive pairs whose compute is summed as that of one sample.
        token_wise: Computes what is done to each token alone; None: as it is.
    """

    def __init__(
        self, merging: TokenMerging, *, sample_ids: Tensor, pairs_per_sample: int = 1, token_wise: TokenWise | None = None
    ) -> None:
        super().__init__(
            merging, sample_ids=sample_ids, kind="masked", pairs_per_sample=pairs_per_sample, token_wise=token_wise
        )
        self.merging = merging

    def run(
        self,
        steps: Sequence[LayerStep],
        streams: Mapping[str, TokenStream],
        *,
        guides: Mapping[str, Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> dict[str, TokenStream]:
        """See :class:`~smarttrim_mm.layers.execution.Execution`."""
        if not steps or steps[0].name not in self.merging.counts:
            return super().run(steps, streams, guides=guides, rows=rows)
        current, sizes = dict(streams), None
        for step in steps:
            ((name, _),) = step.layers.items()
            current[name], sizes, record = self._merge(step, name, current[name], sizes)
            self.record.entries.append(replace(record, rows=rows))
        return current

    def _merge(
        self, step: LayerStep, name: str, stream: TokenStream, sizes: Tensor | None
    ) -> tuple[TokenStream, Tensor | None, StepRecord]:
        before = stream.layout
        assert isinstance(before, CompactedLayout)
        merged = run_merging_layer(step.name, step.layers[name], stream.x, sizes, self.merging.counts[step.name])
        after = before if merged.kept is None else before.at(merged.kept)
        own = torch.as_tensor(self.merging.multiply_adds(step, {name: before.held()})).expand(before.batch_size)
        executed = merged.executed - round(float(own.double().sum()))
        record = StepRecord(step, {name: before}, {name: after}, {}, executed)
        return TokenStream(merged.x, after), merged.sizes, record
