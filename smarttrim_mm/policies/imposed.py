"""A policy that is overruled: it decides as ever, at its full price, but how much is kept is imposed.

For clocks: a model of native size can so be timed at a given speed-up with random weights, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from smarttrim_mm.layers.views import AttentionView, LayerStep, LayerView, modality
from smarttrim_mm.ops.ranking import hash_uniform, keep_top, ranks
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import Decision, Layout, PaddedLayout, Streams, TokenStream

_HALF_WIDTH = 3**0.5  # of an even distribution, in standard deviations
_SHARE, _ORDER, _HEADS = range(3)  # what is drawn
_FIRST = 2.0  # above every draw
_COLUMNS = 64  # places of tokens are drawn in blocks of so many, so that lengths of texts share them


@dataclass(frozen=True)
class Places:
    """Where a policy may cut.

    Attributes:
        depths: By the names of step and stream: how far it lies in the first stage that may cut the stream, i / n; in later
            ones 1.
        attentions: By the names of step and attention, a number for each.
        heads: Of each attention.
    """

    depths: Mapping[tuple[str, str], float]
    attentions: Mapping[tuple[str, str], int]
    heads: tuple[int, ...]

    @classmethod
    def of(cls, policy: Policy, steps: Sequence[LayerStep]) -> Places:
        """The places of a policy.

        Args:
            policy: The policy.
            steps: The layers of the backbone, in order of execution.
        """
        streams = [(step, name) for step in steps for name in sorted(policy.trims(step)[0])]
        first: dict[str, str] = {}
        for step, name in streams:
            first.setdefault(modality(name), step.stage)  # 'image0' goes on where 'image' was
        falls: dict[str, dict[str, int]] = {kind: {} for kind in first}
        for step, name in streams:
            fall = falls[modality(name)]
            if step.stage == first[modality(name)]:
                fall.setdefault(step.name, len(fall) + 1)
        depths = {}
        for step, name in streams:
            fall = falls[modality(name)]
            depths[step.name, name] = fall.get(step.name, len(fall)) / len(fall)
        views = [(step, view) for step in steps for layer in step.layers.values() for view in layer.attentions]
        cut = [(step, view) for step, view in views if view.name in policy.trims(step)[1]]
        numbers = {(step.name, view.name): number for number, (step, view) in enumerate(cut)}
        return cls(depths, numbers, tuple(view.heads for _, view in cut))


@dataclass(frozen=True)
class ImposedShares:
    """How much is kept: a share for each instance, drawn by its identity, of tokens and of heads alike.

    - **Shares** lie evenly between ``mean (1 - sqrt(3) spread)`` and ``mean (1 + sqrt(3) spread)``; what is above 1 keeps all.
    - **Tokens** of a stream fall away geometrically over the ``n`` layers of the first stage that may cut it: before the i-th,
      all but ``share ** (2 i / n)`` of those that are not protected, rounded up, are gone. Half-way the share is left, at the
      end its square. Later stages drop no more; a stream that begins one of them anew falls to that square at once. Which
      tokens fall is drawn at random.
    - **Heads**: every attention that may be cut keeps the share of its heads, rounded up or down at random so that the mean is
      met. Which ones is drawn for each instance and attention.

    Attributes:
        mean: Mean share.
        spread: Its relative standard deviation, below 0.5.
        places: Where something is cut.
        seed: Of the draws.
        shift: Is added to all identities.

    Raises:
        ValueError: If the mean or the spread is impossible.
    """

    mean: float
    spread: float = 0.1
    places: Places = field(default_factory=lambda: Places({}, {}, ()))
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
        return _shares(self.mean, self.spread, self.seed, self._shifted(ids), ids.device)

    def tokens(self, step: LayerStep, stream: str, layout: Layout) -> Tensor:
        """Tokens of a stream that are left once a step has cut it, fp32 [B]."""
        least = layout.floor()
        free = (layout.full() - least) * self.of(layout.ids) ** (2 * self.places.depths[step.name, stream])
        return least + torch.ceil(free - 1e-4)  # 1e-4: float error is no extra token

    def heads(self, step: LayerStep, view: AttentionView, ids: Tensor) -> Tensor:
        """Heads of an attention that are on, fp32 [B]."""
        return self.which_heads(step, view, ids).sum(1, dtype=torch.float32)

    def which_tokens(self, step: LayerStep, stream: str, layout: Layout) -> Tensor:
        """Those that are left, bool, shaped like the stream's tokens; protected ones come first."""
        return layout.from_grid(keep_top(self._grid(layout), self.tokens(step, stream, layout).long()))

    def by_depth(self, stream: str, layout: Layout) -> dict[float, Tensor]:
        """What :meth:`which_tokens` would leave at every depth of the stream, over the original positions, bool [B, N]."""
        depths = sorted({depth for (_, name), depth in self.places.depths.items() if name == stream})
        grid = self._grid(layout)
        least = (grid == _FIRST).sum(1, dtype=torch.float32)  # layout.floor(), which may wait for the device
        powers = _powers(tuple(depths), layout.ids.device)
        free = (layout.full() - least) * self.of(layout.ids) ** powers  # [depths, B]
        counts = (least + torch.ceil(free - 1e-4)).long()
        kept = (ranks(grid) < counts.unsqueeze(-1)) & (grid > -torch.inf)  # [depths, B, N]
        return dict(zip(depths, kept.unbind(), strict=True))

    def _grid(self, layout: Layout) -> Tensor:
        """Random order of the tokens, protected ones first, -inf where there is none, [B, N]."""
        order = layout.from_grid(self._order(layout.ids, layout.size)[:, : layout.size])
        return layout.to_grid(order.masked_fill(layout.protected, _FIRST), -torch.inf)

    def which_heads(self, step: LayerStep, view: AttentionView, ids: Tensor) -> Tensor:
        """Those that are on, bool [B, H]."""
        return self._which_heads(ids)[self.places.attentions[step.name, view.name], :, : view.heads]

    def draw(self, ids: Tensor, sizes: Iterable[int]) -> None:
        """Draws for instances, long [B], all random numbers that streams of these sizes need: they are drawn once only."""
        self.of(ids)
        if self.places.heads:
            self._which_heads(ids)
        for size in sizes:
            self._order(ids, size)

    def _which_heads(self, ids: Tensor) -> Tensor:
        return _heads(self.mean, self.spread, self.seed, self._shifted(ids), self.places.heads, ids.device)

    def _order(self, ids: Tensor, size: int) -> Tensor:
        return _uniform(_ORDER, self.seed, self._shifted(ids), 1, _blocks(size), ids.device)[0]

    def _shifted(self, ids: Tensor) -> tuple[int, ...]:
        known = on_host(ids)
        return tuple(identity + self.shift for identity in known) if self.shift else known


_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()  # identities that were read from the device, by their tensor


def on_host(ids: Tensor) -> tuple[int, ...]:
    """The identities [B] as numbers: read from the device once for each tensor, which must not be written afterwards."""
    if ids not in _KNOWN:
        _KNOWN[ids] = tuple(ids.tolist())
    return _KNOWN[ids]


def _blocks(size: int) -> int:
    return -(-size // _COLUMNS) * _COLUMNS


# One draw serves all layers, so that little of what is timed is drawing.


@lru_cache(maxsize=512)
@torch.inference_mode(False)
def _uniform(kind: int, seed: int, ids: tuple[int, ...], rows: int, columns: int, device: torch.device) -> Tensor:
    """Numbers in [0, 1) for instances, by their identity, fp32 [rows, B, columns]."""
    cells = torch.arange(rows * columns, device=device).view(rows, 1, columns)
    return hash_uniform(torch.tensor(ids, device=device)[:, None], 10 * seed + kind, cells)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _powers(depths: tuple[float, ...], device: torch.device) -> Tensor:
    """Of the shares, fp32 [depths, 1]."""
    return 2 * torch.tensor(depths, device=device).unsqueeze(1)


@lru_cache(maxsize=512)
@torch.inference_mode(False)
def _shares(mean: float, spread: float, seed: int, ids: tuple[int, ...], device: torch.device) -> Tensor:
    """The share of each instance, fp32 [B]."""
    drawn = 2 * _uniform(_SHARE, seed, ids, 1, 1, device)[0, :, 0] - 1
    return (mean * (1 + _HALF_WIDTH * spread * drawn)).clamp(max=1.0)


@lru_cache(maxsize=512)
@torch.inference_mode(False)
def _heads(mean: float, spread: float, seed: int, ids: tuple[int, ...], heads: tuple[int, ...], device: torch.device) -> Tensor:
    """Heads that are on, of attentions with so many each, bool [attentions, B, most heads]."""
    most = max(heads)
    drawn = _uniform(_HEADS, seed, ids, len(heads), most + 1, device)  # the last column rounds
    of_each = torch.tensor(heads, device=device)[:, None]
    counts = torch.floor(_shares(mean, spread, seed, ids, device) * of_each + drawn[..., -1]).long()
    absent = torch.arange(most, device=device) >= of_each[..., None]
    order = drawn[..., :-1].masked_fill(absent, -torch.inf)
    return keep_top(order.flatten(0, 1), counts.flatten()).unflatten(0, counts.shape)


class ImposedKeep(Policy):
    """Asks another policy, and keeps what :class:`ImposedShares` says instead, wherever that policy may cut.

    Its compute is the other policy's; finding what is kept is not counted, but takes its time: once for each stream that is
    new, not in each layer. The random numbers behind it are drawn once for all that share identities and seed: whoever times
    several calls :meth:`prepare` first, or the first of them pays for the others. It is no plugin: it is made around a policy
    that is there. A stream that it cuts is cut by no one else.

    Args:
        policy: Decides, in vain.
        shares: How much is kept.
    """

    def __init__(self, *, policy: Policy, shares: ImposedShares) -> None:
        super().__init__(steps=())
        self.policy, self.shares = policy, shares
        # by what a stream carries along: its identities, its size when it was seen first, and what is left of it
        self._drawn: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._sizes: set[int] = set()  # of the streams so far

    @classmethod
    def around(cls, policy: Policy, steps: Sequence[LayerStep], *, spread: float = 0.1, seed: int = 0) -> ImposedKeep:
        """The wrapped policy, as yet keeping everything.

        Args:
            policy: The policy.
            steps: The layers of the backbone, in order of execution.
            spread: Relative standard deviation of the shares.
            seed: Of the draws.
        """
        shares = ImposedShares(1.0, spread, Places.of(policy, steps), seed)
        return cls(policy=policy, shares=replace(shares, mean=shares.mean_of_all))

    def at(self, mean: float) -> ImposedKeep:
        """The same with another mean share."""
        return ImposedKeep(policy=self.policy, shares=replace(self.shares, mean=mean))

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        decided = self.policy.before_layer(step, streams, guides)  # for its time, and what it notes for itself
        names, attentions = self.trims(step)
        ids = next(iter(streams.values())).layout.ids
        views = [view for layer in step.layers.values() for view in layer.attentions if view.name in attentions]
        return Decision(
            keep={name: self._which_tokens(step, name, streams[name]) for name in sorted(names)},
            heads={view.name: self.shares.which_heads(step, view, ids) for view in views},
            carry=decided.carry,
        )

    def layers_of(self, step: LayerStep) -> Mapping[str, LayerView]:
        return self.policy.layers_of(step)

    def prepare(self, *ids: Tensor) -> None:
        """Reads identities from the device and draws for them, so that no pass over streams of these very tensors does.

        Args:
            ids: long [B] each; drawn is for streams as long as those of earlier passes.
        """
        for each in ids:
            self.shares.draw(each, self._sizes)

    def _which_tokens(self, step: LayerStep, name: str, stream: TokenStream) -> Tensor:
        """What :class:`ImposedShares` leaves of a stream: drawn for all depths when the stream is first seen."""
        layout = stream.layout
        real = layout.valid if type(layout) is PaddedLayout else layout.full()  # the same as long as the stream is only cut
        size = stream.x.shape[:-1].numel()
        known = self._drawn.get(real)
        if known is None or known[0] is not layout.ids or known[1] < size:
            self._sizes.add(_blocks(layout.size))
            known = self._drawn[real] = (layout.ids, size, self.shares.by_depth(name, layout))
        return layout.from_grid(known[2][self.shares.places.depths[step.name, name]])

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        return self.policy.trims(step)

    def reads(self, step: LayerStep) -> frozenset[str]:
        return self.policy.reads(step)

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        return self.policy.multiply_adds(step, counts)
