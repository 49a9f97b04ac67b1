"""Pad to the longest: the kept tokens of each instance move to its left, and shorter instances are padded behind a mask.

What trimmed models do without packing: dense shapes, as wide as the instance that keeps most. Decisions and outputs are those
of the other executions. It stands beside them in benchmarks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.ops.rows import take_tokens
from smarttrim_mm.structures import Merge, PackedLayout, PaddedLayout, TokenStream


@dataclass(frozen=True)
class CompactedLayout(PaddedLayout):
    """A padded layout that has lost its dropped tokens, as far as the longest instance allows.

    Its ``valid`` and ``gate`` are those of the n places that are left; what lies behind an instance's last token is padding.

    Attributes:
        source: Original position of each token, long [B, n].
        real: Real tokens of each instance before any decision, fp32 [B].
        original: Padded length N of the stream before anything was dropped.
    """

    source: Tensor
    real: Tensor
    original: int

    @property
    def size(self) -> int:
        return self.original

    def full(self) -> Tensor:
        """See :class:`~smarttrim_mm.structures.PaddedLayout`, like the others."""
        return self.real

    def kept_grid(self) -> Tensor:
        return self.to_grid(self.gate, 0.0) > 0

    def positions(self) -> Tensor:
        return self.source

    def to_grid(self, values: Tensor, fill: float) -> Tensor:
        here = self.gate > 0
        grid = values.new_full((self.batch_size, self.original + 1), fill)  # padding is sent to one column more
        grid.scatter_(1, self.source.masked_fill(~here, self.original), values)
        return grid[:, :-1]

    def from_grid(self, grid: Tensor) -> Tensor:
        return grid.gather(1, self.source)

    def select(self, x: Tensor, keep: Tensor) -> tuple[Tensor, CompactedLayout]:
        """Leaves out what is neither kept nor protected, and moves the rest to the left."""
        kept = ((keep > 0) | self.protected) & (self.gate > 0)
        counts = kept.sum(1)
        longest, shortest = torch.stack([counts.amax(), counts.amin()]).tolist()
        if shortest == kept.shape[1]:
            return x, self
        order = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]
        return self.take(x, order, None if shortest == longest else kept.gather(1, order))

    def merge(self, x: Tensor, merge: Merge) -> tuple[Tensor, PaddedLayout, Tensor]:
        """Merges tokens in place; what merged away is still there."""
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        found = self.to_grid(places, 0).gather(1, merge.into.masked_fill(self.gate == 0, 0))
        return self._merge_places(x, merge, found, places)

    def take(self, x: Tensor, order: Tensor, kept: Tensor | None = None) -> tuple[Tensor, CompactedLayout]:
        """The tokens at some places, and how they lie; arguments as :meth:`at`."""
        return take_tokens(x, order), self.at(order, kept)

    def at(self, order: Tensor, kept: Tensor | None = None) -> CompactedLayout:
        """The layout of the tokens at some places.

        Args:
            order: Places of each instance's tokens, long [B, m].
            kept: True at those that are no padding, bool [B, m]; None: all, so that attention needs no mask.
        """
        whole = kept is None
        kept = torch.ones_like(order, dtype=torch.bool) if kept is None else kept
        return replace(
            self,
            valid=kept,
            gate=kept.to(self.gate.dtype),
            protected=self.protected.gather(1, order) & kept,
            whole=whole,
            source=self.source.gather(1, order),
            sizes=None if self.sizes is None else self.sizes.gather(1, order),
        )

    def expand(self, x: Tensor, index: Tensor, ids: Tensor) -> tuple[Tensor, CompactedLayout]:
        names = ["valid", "gate", "protected", "source", "real"] + ["sizes"] * (self.sizes is not None)
        return x[index], replace(self, ids=ids, **{name: getattr(self, name)[index] for name in names})

    def _columns(self, x: Tensor, columns: slice) -> tuple[Tensor, CompactedLayout]:
        names = ["valid", "gate", "protected", "source"] + ["sizes"] * (self.sizes is not None)
        return x[:, columns], replace(self, **{name: getattr(self, name)[:, columns] for name in names})


def compact(stream: TokenStream) -> TokenStream:
    """The same padded tokens, in a layout that loses what is dropped from here on."""
    layout = stream.layout
    if isinstance(layout, PackedLayout):
        raise ValueError("the stream is packed; expected a padded one, as TokenStream.start() gives it")
    source = layout.positions().expand(layout.gate.shape)
    own = {field.name: getattr(layout, field.name) for field in fields(layout)}
    return replace(stream, layout=CompactedLayout(**own, source=source, real=layout.full(), original=layout.size))


class CompactedExecution(Execution):
    """An execution that pads to the longest, see :class:`CompactedLayout`. Heads that are off are multiplied by zero."""

    def start(self, stream: TokenStream) -> TokenStream:
        return compact(stream)
