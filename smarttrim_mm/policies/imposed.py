"""A policy that is overruled: it decides as ever, at its full price, but how much is kept is imposed.

For clocks: a model of native size can so be timed at a given speed-up with random weights, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

import torch
from torch import Tensor

from smarttrim_mm.layers.views import AttentionView, LayerStep, modality
from smarttrim_mm.ops.ranking import hash_uniform, keep_top
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import Decision, Layout, Streams

_HALF_WIDTH = 3**0.5  # of an even distribution, in standard deviations
_ORDER, _SHARE, _ROUND, _HEADS = range(4)  # what is drawn


@dataclass(frozen=True)
class ImposedShares:
    """How much is kept: a share for each instance, drawn by its identity, of tokens and of heads alike.

    - **Shares** lie evenly between ``mean (1 - sqrt(3) spread)`` and ``mean (1 + sqrt(3) spread)``; what is above 1 keeps all.
    - **Tokens** of a stream fall away geometrically over the ``n`` layers of the first stage that may cut it: before the i-th,
      all but ``share ** (2 i / n)`` of those that are not protected, rounded up, are gone. Half-way the share is left, at the
      end its square. Later stages drop no more. Which tokens fall is drawn at random.
    - **Heads**: every attention that may be cut keeps the share of its heads, rounded up or down at random so that the mean is
      met. Which ones is drawn for each instance and attention.

    Attributes:
        mean: Mean share.
        spread: Its relative standard deviation, below 0.5.
        depths: By the names of step and stream, ``i / n``.
        seed: Of the draws.
        shift: Is added to all identities.
    """

    mean: float
    spread: float = 0.1
    depths: Mapping[tuple[str, str], float] = field(default_factory=dict)
    seed: int = 0
    shift: int = 0

    def __post_init__(self) -> None:
        if self.mean < 0:
            raise ValueError(f"mean is {self.mean}; expected a share >= 0, 1 keeps everything")
        if not 0 <= self.spread < 0.5:
            raise ValueError(f"spread is {self.spread}; expected a relative standard deviation in [0, 0.5), such as 0.1")

    @property
    def mean_of_all(self) -> float:
        """The least mean at which every instance keeps everything."""
        return 1 / (1 - _HALF_WIDTH * self.spread)

    def of(self, ids: Tensor) -> Tensor:
        """The share of each instance, fp32 [B]."""
        drawn = 2 * self.draw(_SHARE, ids) - 1
        return (self.mean * (1 + _HALF_WIDTH * self.spread * drawn)).clamp(max=1.0)

    def tokens(self, step: LayerStep, stream: str, layout: Layout) -> Tensor:
        """Tokens of a stream that are left once a step has cut it, fp32 [B]."""
        least = layout.floor()
        free = (layout.full() - least) * self.of(layout.ids) ** (2 * self.depths[step.name, stream])
        return least + torch.ceil(free - 1e-4)  # 1e-4: float error is no extra token

    def heads(self, step: LayerStep, view: AttentionView, ids: Tensor) -> Tensor:
        """Heads of an attention that are on, fp32 [B]."""
        return torch.floor(self.of(ids) * view.heads + self.draw(_ROUND, ids, _number(step, view)))

    def draw(self, kind: int, ids: Tensor, *keys: Tensor | int) -> Tensor:
        """Random numbers in [0, 1) for instances, by their identity."""
        return hash_uniform(ids + self.shift, 10 * self.seed + kind, *keys)


class ImposedKeep(Policy):
    """Asks another policy, and keeps what :class:`ImposedShares` says instead, wherever that policy may cut.

    Its compute is the other policy's; drawing what is kept is not counted, but takes its time. It is no plugin: it is made
    around a policy that is there.

    Args:
        policy: Decides, in vain.
        shares: How much is kept.
    """

    def __init__(self, *, policy: Policy, shares: ImposedShares) -> None:
        super().__init__(steps=())
        self.policy, self.shares = policy, shares

    @classmethod
    def around(cls, policy: Policy, steps: Sequence[LayerStep], *, spread: float = 0.1, seed: int = 0) -> ImposedKeep:
        """The wrapped policy, as yet keeping everything.

        Args:
            policy: The policy.
            steps: The layers of the backbone, in order of execution.
            spread: Relative standard deviation of the shares.
            seed: Of the draws.
        """
        shares = ImposedShares(1.0, spread, depths_of(policy, steps), seed)
        return cls(policy=policy, shares=replace(shares, mean=shares.mean_of_all))

    def at(self, mean: float) -> ImposedKeep:
        """The same with another mean share."""
        return ImposedKeep(policy=self.policy, shares=replace(self.shares, mean=mean))

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        self.policy.before_layer(step, streams, guides)  # for its time alone
        names, attentions = self.trims(step)
        keep = {}
        for name in sorted(names):
            layout = streams[name].layout
            order = self.shares.draw(_ORDER, layout.per_token(layout.ids), layout.positions())
            order = order.expand(streams[name].x.shape[:-1]).masked_fill(layout.protected, 2.0)
            counts = self.shares.tokens(step, name, layout).long()
            keep[name] = layout.from_grid(keep_top(layout.to_grid(order, -torch.inf), counts))
        ids = next(iter(streams.values())).layout.ids
        heads = {}
        for view in (view for layer in step.layers.values() for view in layer.attentions if view.name in attentions):
            order = self.shares.draw(_HEADS, ids[:, None], torch.arange(view.heads, device=ids.device), _number(step, view))
            heads[view.name] = keep_top(order, self.shares.heads(step, view, ids).long())
        return Decision(keep=keep, heads=heads)

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        return self.policy.trims(step)

    def reads(self, step: LayerStep) -> frozenset[str]:
        return self.policy.reads(step)

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        return self.policy.multiply_adds(step, counts)


def depths_of(policy: Policy, steps: Sequence[LayerStep]) -> dict[tuple[str, str], float]:
    """How far each place that may cut a stream lies in the first stage that may: i / n, and 1 in later stages.

    Args:
        policy: Says where it may cut.
        steps: The layers of the backbone, in order of execution.

    Returns:
        By the names of step and stream.
    """
    places = [(step, name) for step in steps for name in sorted(policy.trims(step)[0])]
    first: dict[str, str] = {}
    for step, name in places:
        first.setdefault(modality(name), step.stage)  # 'image0' goes on where 'image' was
    falls: dict[str, list[str]] = {kind: [] for kind in first}
    for step, name in places:
        fall = falls[modality(name)]
        if step.stage == first[modality(name)] and step.name not in fall:
            fall.append(step.name)
    depths = {}
    for step, name in places:
        fall = falls[modality(name)]
        depths[step.name, name] = (fall.index(step.name) + 1) / len(fall) if step.name in fall else 1.0
    return depths


def _number(step: LayerStep, view: AttentionView) -> int:
    return crc32(f"{step.name}/{view.name}".encode())
