"""DynamicViT-style execution of a model (Rao et al., NeurIPS 2021, arXiv 2106.02034).

At three places of the image encoder a predictor scores the tokens and the best of them stay, as many of each instance, so that
shapes are dense, without padding. It stands beside the others in benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from smarttrim_mm.layers.compacted import CompactedExecution, CompactedLayout
from smarttrim_mm.layers.token_wise import TokenWise
from smarttrim_mm.layers.views import AttentionView, LayerStep
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import Layout, TokenStream

_PLACES = 3


class Predictor(nn.Module):
    """How much each token is wanted (section 3.2): of its own features and of the mean of all.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.local = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(width, half), nn.GELU(), nn.Linear(half, half // 2), nn.GELU(), nn.Linear(half // 2, 2)
        )

    @property
    def multiply_adds(self) -> int:
        """Compute per token."""
        return sum(part.weight.numel() for part in self.modules() if isinstance(part, nn.Linear))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> log-probabilities of staying, [B, N]."""
        own, of_all = self.local(x).chunk(2, -1)
        mean = of_all.mean(1, keepdim=True).expand_as(of_all)
        return self.score(torch.cat([own, mean], -1)).log_softmax(-1)[..., 0]


@dataclass(frozen=True)
class Ratio:
    """How many tokens stay at the places where tokens are dropped: ``rho``, ``rho ** 2`` and ``rho ** 3`` of all but the first.

    Attributes:
        rho: In [0, 1].
        powers: By the name of the step, the power.

    Raises:
        ValueError: If ``rho`` is no share.
    """

    rho: float
    powers: Mapping[str, int]

    def __post_init__(self) -> None:
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho is {self.rho}; expected a share in [0, 1], 1 keeps everything")

    def count(self, step: LayerStep, size: int) -> int:
        """Tokens that stay from a step on, of so many at the beginning; the first one does in any case."""
        return 1 + round(self.rho ** self.powers[step.name] * (size - 1))

    def tokens(self, step: LayerStep, stream: str, layout: Layout) -> Tensor:
        """The same for each instance, fp32 [B]."""
        return torch.full_like(layout.full(), self.count(step, layout.size))

    def heads(self, step: LayerStep, view: AttentionView, ids: Tensor) -> float:
        """All of them."""
        return float(view.heads)


class FixedCount(Policy):
    """Drops tokens of the image encoder before the layers a quarter, half and three quarters in: 3, 6 and 9 of 12.

    Text and heads are left alone; the fusion encoder reads what is left. The predictors' weights are random: what is dropped is
    arbitrary, what it costs is not.

    Args:
        predictors: By the name of the step that they stand in front of, its dots replaced by underscores.
        ratio: How many tokens stay.
    """

    def __init__(self, *, predictors: nn.ModuleDict, ratio: Ratio) -> None:
        super().__init__(steps=())
        self.predictors, self.ratio = predictors, ratio

    @classmethod
    def of(cls, steps: Sequence[LayerStep], *, seed: int = 0) -> FixedCount:
        """The three places of an image encoder, at which as yet everything stays.

        Args:
            steps: Its layers, in order of execution.
            seed: Of the predictors' weights.
        """
        places = [steps[len(steps) * place // (_PLACES + 1)] for place in range(1, _PLACES + 1)]
        predictors = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for step in places:
                ((_, layer),) = step.layers.items()
                weight = layer.mlp.fc1.weight
                predictor = Predictor(layer.width).requires_grad_(False)
                predictors[_key(step)] = predictor.to(weight.device, weight.dtype)
        powers = {step.name: power for power, step in enumerate(places, 1)}  # of few layers, some have two places
        return cls(predictors=predictors, ratio=Ratio(1.0, powers))

    def at(self, rho: float) -> FixedCount:
        """The same predictors, another ratio."""
        return FixedCount(predictors=self.predictors, ratio=replace(self.ratio, rho=rho))

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(step.layers if step.name in self.ratio.powers else ()), frozenset()

    def reads(self, step: LayerStep) -> frozenset[str]:
        return frozenset()  # no text is read ahead for its sake

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        names, _ = self.trims(step)
        return sum((counts[name] * self.predictor(step).multiply_adds for name in names), 0.0)

    def predictor(self, step: LayerStep) -> Predictor:
        """The one in front of a step."""
        predictor = self.predictors[_key(step)]
        assert isinstance(predictor, Predictor)
        return predictor


def _key(step: LayerStep) -> str:
    return step.name.replace(".", "_")  # a ModuleDict's keys hold no dots


class FixedCountExecution(CompactedExecution):
    """An execution under :class:`FixedCount`.

    Counts are known beforehand: unlike a decision, which says of each token whether it stays, nothing is read back from the
    device.

    Args:
        fixed: Says how many tokens stay.
        sample_ids: Identity of each image-text pair, long [B].
        pairs_per_sample: Consecutive pairs whose compute is summed as that of one sample.
        token_wise: Computes what is done to each token alone; None: as it is.
    """

    def __init__(
        self, fixed: FixedCount, *, sample_ids: Tensor, pairs_per_sample: int = 1, token_wise: TokenWise | None = None
    ) -> None:
        super().__init__(fixed, sample_ids=sample_ids, kind="masked", pairs_per_sample=pairs_per_sample, token_wise=token_wise)
        self.fixed = fixed

    def run(
        self,
        steps: Sequence[LayerStep],
        streams: Mapping[str, TokenStream],
        *,
        guides: Mapping[str, Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> dict[str, TokenStream]:
        """See :class:`~smarttrim_mm.layers.execution.Execution`."""
        current = dict(streams)
        for step in steps:
            before = {name: current[name].layout for name in current if name in step.streams()}
            for name in sorted(self.fixed.trims(step)[0]):
                current[name] = self._cut(step, current[name])
            current = super().run([step], current, guides=guides, rows=rows)
            self.record.entries[-1] = replace(self.record.steps[-1], before=before)
        return current

    def _cut(self, step: LayerStep, stream: TokenStream) -> TokenStream:
        layout = stream.layout
        assert isinstance(layout, CompactedLayout)
        scores = self.fixed.predictor(step)(stream.x).masked_fill(layout.protected, torch.inf)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, : self.fixed.ratio.count(step, layout.size)]
        return TokenStream(*layout.take(stream.x, best.sort(dim=1).values))
