"""How the tokens of a stream lie: padded, with dropped ones behind gates, or packed, without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from smarttrim_mm.attention.base import Sequences
from smarttrim_mm.ops.attention import key_bias
from smarttrim_mm.ops.device import to_device
from smarttrim_mm.ops.host import to_host
from smarttrim_mm.ops.merging import summed_sizes, weighted_means
from smarttrim_mm.ops.row_filling import take_rows
from smarttrim_mm.ops.rows import row_numbers


@dataclass(frozen=True)
class Merge:
    """Which tokens of a stream merge into which, each into the weighted mean of all that do.

    Attributes:
        into: Original position of the token that each merges into, its own where it stays, long, [B, N] or [S]. What is
            merged into must stay.
        weight: Of each token in its mean, positive, fp32, shaped likewise.
        sized: Whether tokens carry on how many original ones they stand for, so that later attention weighs them by it
            (proportional attention: ToMe, arXiv 2210.09461, section 3).
    """

    into: Tensor
    weight: Tensor
    sized: bool = False


@dataclass(frozen=True)
class PaddedLayout:
    """Dropped tokens stay in place behind a gate: the execution of training, and the oracle of tests.

    Attributes:
        valid: True at real tokens, False at padding, bool [B, N].
        gate: 1 where a token is kept, 0 where it was dropped or is padding, fp32 [B, N]. In training it carries the
            straight-through gradient of the decisions.
        protected: True where a token must survive any decision, bool [B, N].
        ids: Stable identity of each instance, long [B].
        guide_index: Position of the token that speaks for the stream ([CLS], ``<s>``); None: the mean of the kept.
        whole: Whether every token is known to be kept, so that attention needs no mask.
        sizes: How many original tokens each stands for, fp32 [B, N], where attention weighs keys by it; None: nowhere.
    """

    valid: Tensor
    gate: Tensor
    protected: Tensor
    ids: Tensor
    guide_index: int | None
    whole: bool
    sizes: Tensor | None = field(default=None, kw_only=True)

    @property
    def batch_size(self) -> int:
        return self.gate.shape[0]

    @property
    def rows(self) -> int:
        """Length of the first axis of the tokens."""
        return self.batch_size

    @property
    def size(self) -> int:
        """Padded length N of the stream."""
        return self.gate.shape[1]

    def counts(self) -> Tensor:
        """Kept tokens per instance, fp32 [B]; differentiable in the gate."""
        return self.gate.sum(1)

    def full(self) -> Tensor:
        """Real tokens per instance before any decision, fp32 [B]."""
        return self.valid.sum(1, dtype=torch.float32)

    def floor(self) -> Tensor:
        """Protected tokens per instance, fp32 [B]."""
        return self.protected.sum(1, dtype=torch.float32)

    def held(self) -> Tensor:
        """Tokens per instance that layers are run on, dropped ones and padding included, fp32 [B]."""
        return torch.full_like(self.ids, self.gate.shape[1], dtype=torch.float32)

    @cached_property
    def key_bias(self) -> Tensor | None:
        """What attention adds to the scores of the tokens as keys, [B, 1, 1, N]; None: nothing, as all of them are kept."""
        return None if self.whole else key_bias(self.gate)

    def kept_grid(self) -> Tensor:
        """True at the kept original positions, bool [B, N]."""
        return self.gate > 0

    def per_token(self, values: Tensor) -> Tensor:
        """Spreads [B, ...] values over the tokens: [B, 1, ...], ready to broadcast."""
        return values.unsqueeze(1)

    def positions(self) -> Tensor:
        """Original position of each token, long [1, N]."""
        return torch.arange(self.gate.shape[1], device=self.gate.device).unsqueeze(0)

    def guide(self, x: Tensor) -> Tensor:
        """The token that speaks for the stream, [B, D]; without one, the mean of the kept tokens."""
        if self.guide_index is not None:
            return x[:, self.guide_index]
        weight = self.gate.to(x.dtype).unsqueeze(-1)
        return (x * weight).sum(1) / weight.sum(1)

    def mean(self, values: Tensor, marked: Tensor | None = None) -> Tensor:
        """Mean over the kept tokens, in fp32; differentiable in the gate.

        Args:
            values: [B, N, C].
            marked: Which of them count, bool [B, N]; None: all.

        Returns:
            [B, C], zeros where none counts.
        """
        weight = (self.gate if marked is None else self.gate * marked).unsqueeze(-1)
        return (values.float() * weight).sum(1) / weight.sum(1).clamp(min=1)

    def to_grid(self, values: Tensor, fill: float) -> Tensor:
        """Per-token values with ``fill`` wherever no token is kept, [B, N]."""
        return values.masked_fill(~self.kept_grid(), fill)

    def from_grid(self, grid: Tensor) -> Tensor:
        """Values at the tokens of a grid over the original positions, [B, N]."""
        return grid

    def to_rows(self, values: Tensor, fill: float) -> Tensor:
        """Per-token values, a row an instance, ``fill`` where no token is kept, [B, N, ...]."""
        dropped = ~self.kept_places()
        return values.masked_fill(dropped.view(*dropped.shape, *[1] * (values.dim() - 2)), fill)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Values at the tokens of what :meth:`to_rows` laid out, [B, N, ...]."""
        return rows

    def kept_places(self) -> Tensor:
        """True where :meth:`to_rows` has a token, bool [B, N]."""
        return self.gate > 0

    def select(self, x: Tensor, keep: Tensor) -> tuple[Tensor, PaddedLayout]:
        """Closes the gate of what is not kept; what was dropped before stays dropped."""
        # a protected token takes the constant 1: no gradient reaches a decision that has no effect
        keep = keep | self.protected if keep.dtype is torch.bool else keep.to(self.gate.dtype).masked_fill(self.protected, 1.0)
        gate = self.gate * keep
        return x, PaddedLayout(self.valid, gate, self.protected, self.ids, self.guide_index, whole=False, sizes=self.sizes)

    def merge(self, x: Tensor, merge: Merge) -> tuple[Tensor, PaddedLayout, Tensor]:
        """Merges tokens in place; see :meth:`PackedLayout.merge`."""
        return self._merge_places(x, merge, merge.into, self.positions().expand(x.shape[:2]))

    def _merge_places(self, x: Tensor, merge: Merge, places: Tensor, own: Tensor) -> tuple[Tensor, Self, Tensor]:
        """The same by places instead of positions, [B, N]: those that tokens merge into, and their own."""
        here = self.gate > 0
        into = torch.where(here & ~self.protected, places, own)
        rows = row_numbers(into, x.shape[1])
        merged = weighted_means(x.flatten(0, 1), rows, (merge.weight * here).flatten())
        layout = replace(self, sizes=summed_sizes(self.sizes, here, rows)) if merge.sized else self
        return merged.unflatten(0, here.shape), layout, into == own

    def split(self, x: Tensor, count: int) -> tuple[tuple[Tensor, PaddedLayout], tuple[Tensor, PaddedLayout]]:
        """The first tokens of every instance, and the others."""
        return self._columns(x, slice(count)), self._columns(x, slice(count, None))

    def join(self, first: Tensor, others: Tensor) -> Tensor:
        """Puts together what :meth:`split` gave: [B, N, D]."""
        return torch.cat([first, others], 1)

    def _columns(self, x: Tensor, columns: slice) -> tuple[Tensor, PaddedLayout]:
        valid, gate, protected = (grid[:, columns] for grid in (self.valid, self.gate, self.protected))
        sizes = None if self.sizes is None else self.sizes[:, columns]
        return x[:, columns], replace(self, valid=valid, gate=gate, protected=protected, sizes=sizes)

    def expand(self, x: Tensor, index: Tensor, ids: Tensor) -> tuple[Tensor, PaddedLayout]:
        """Row ``b`` of the result is row ``index[b]``."""
        rows = (self.valid[index], self.gate[index], self.protected[index])
        sizes = None if self.sizes is None else self.sizes[index]
        return x[index], PaddedLayout(*rows, ids=ids, guide_index=self.guide_index, whole=self.whole, sizes=sizes)


@dataclass(frozen=True)
class PackedLayout:
    """The kept tokens of a batch lie end to end, without padding: the execution of inference.

    Attributes:
        lengths: Kept tokens of each instance, on the host.
        cu_seqlens: Where each instance begins, and the end, int32 [B + 1].
        instance: Which instance a token belongs to, long [S].
        source: Original position of each token, long [S].
        protected: True where a token must survive any decision, bool [S].
        ids: Stable identity of each instance, long [B].
        size: Padded length N of the stream that was packed.
        real: Real tokens of each instance before any decision, fp32 [B].
        guide_index: 0 if each instance's first token speaks for the stream; None: the mean of the kept.
        sizes: How many original tokens each stands for, fp32 [S], where attention weighs keys by it; None: nowhere.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    instance: Tensor
    source: Tensor
    protected: Tensor
    ids: Tensor
    size: int
    real: Tensor
    guide_index: int | None
    sizes: Tensor | None = field(default=None, kw_only=True)

    @property
    def batch_size(self) -> int:
        return len(self.lengths)

    @property
    def rows(self) -> int:
        """Length of the first axis of the tokens."""
        return self.instance.shape[0]

    @cached_property
    def sequences(self) -> Sequences:
        """As attention takes them."""
        return Sequences(self.lengths, self.cu_seqlens)

    def counts(self) -> Tensor:
        """Kept tokens per instance, fp32 [B]."""
        return self.cu_seqlens.diff().to(torch.float32)

    def full(self) -> Tensor:
        """Real tokens per instance before any decision, fp32 [B]."""
        return self.real

    def floor(self) -> Tensor:
        """Protected tokens per instance, fp32 [B]."""
        return self.real.new_zeros(self.batch_size).index_add_(0, self.instance, self.protected.to(torch.float32))

    def held(self) -> Tensor:
        """Tokens per instance that layers are run on, fp32 [B]: those that are kept."""
        return self.counts()

    def kept_grid(self) -> Tensor:
        """True at the kept original positions, bool [B, N]."""
        grid = torch.zeros(self.batch_size, self.size, dtype=torch.bool, device=self.instance.device)
        grid[self.instance, self.source] = True
        return grid

    def per_token(self, values: Tensor) -> Tensor:
        """Spreads [B, ...] values over the tokens: [S, ...], or [1, ...] of a single instance."""
        return values if len(self.lengths) == 1 else values.index_select(0, self.instance)

    def positions(self) -> Tensor:
        """Original position of each token, long [S]."""
        return self.source

    def guide(self, x: Tensor) -> Tensor:
        """The token that speaks for the stream, [B, D]; without one, the mean of the kept tokens."""
        if self.guide_index is not None:
            return x.index_select(0, self.cu_seqlens[:-1])
        total = x.new_zeros(self.batch_size, x.shape[1]).index_add_(0, self.instance, x)
        return total / self.counts().to(x.dtype).unsqueeze(-1)

    def mean(self, values: Tensor, marked: Tensor | None = None) -> Tensor:
        """Mean over the kept tokens, in fp32.

        Args:
            values: [S, C].
            marked: Which of them count, bool [S]; None: all.

        Returns:
            [B, C], zeros where none counts.
        """
        weight = torch.ones_like(self.source, dtype=torch.float32) if marked is None else marked.float()
        total = weight.new_zeros(self.batch_size, values.shape[1])
        total = total.index_add(0, self.instance, values.float() * weight.unsqueeze(1))
        return total / weight.new_zeros(self.batch_size).index_add(0, self.instance, weight).clamp(min=1).unsqueeze(1)

    def to_grid(self, values: Tensor, fill: float) -> Tensor:
        """Per-token values laid over the original positions, ``fill`` elsewhere, [B, N]."""
        grid = values.new_full((self.batch_size, self.size), fill)
        grid[self.instance, self.source] = values
        return grid

    def from_grid(self, grid: Tensor) -> Tensor:
        """Values at the tokens of a grid over the original positions, [S]."""
        return grid[self.instance, self.source]

    def to_rows(self, values: Tensor, fill: float) -> Tensor:
        """Per-token values, a row an instance, without gaps, ``fill`` behind an instance's last token, [B, longest, ...]."""
        rows = values.new_full((self.batch_size, max(self.lengths), *values.shape[1:]), fill)
        rows[self.instance, self._places()] = values
        return rows

    def from_rows(self, rows: Tensor) -> Tensor:
        """Values at the tokens of what :meth:`to_rows` laid out, [S, ...]."""
        return rows[self.instance, self._places()]

    def kept_places(self) -> Tensor:
        """True where :meth:`to_rows` has a token, bool [B, longest]."""
        return torch.arange(max(self.lengths), device=self.source.device) < self.cu_seqlens.diff()[:, None]

    def _places(self) -> Tensor:
        """The place of each token within its instance, long [S]."""
        return torch.arange(self.rows, device=self.source.device) - self.cu_seqlens.index_select(0, self.instance)

    def mark(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """What a decision leaves, still on the device.

        Args:
            keep: bool or in {0, 1}, [S].

        Returns:
            True at tokens that are kept or protected, bool [S], and where each instance will begin, and the end, int32 [B + 1].
        """
        marks = (keep if keep.dtype is torch.bool else keep > 0) | self.protected
        return marks, pad(marks.cumsum(0, dtype=torch.int32), (1, 0)).index_select(0, self.cu_seqlens)

    def take(self, x: Tensor, marks: Tensor, cu_seqlens: Tensor, ends: Sequence[int]) -> tuple[Tensor, PackedLayout]:
        """Leaves out what is not marked.

        Args:
            x: Tokens, [S, D].
            marks: What :meth:`mark` gave first.
            cu_seqlens: And second.
            ends: The same on the host.
        """
        if ends[-1] == marks.shape[0]:
            return x, self
        rows = torch.nonzero_static(marks, size=ends[-1]).squeeze(1)
        lengths = tuple(end - begin for begin, end in pairwise(ends))
        return take_rows(x, rows), self._at(rows, self.instance.index_select(0, rows), lengths, cu_seqlens)

    def select(self, x: Tensor, keep: Tensor) -> tuple[Tensor, PackedLayout]:
        """Leaves out what is neither kept nor protected."""
        marks, cu_seqlens = self.mark(keep)
        return self.take(x, marks, cu_seqlens, *to_host([cu_seqlens]))

    def merge(self, x: Tensor, merge: Merge) -> tuple[Tensor, PackedLayout, Tensor]:
        """Replaces tokens that others merge into by weighted means; what merged away is still there.

        Args:
            x: Tokens.
            merge: What merges into what. Protected tokens stay what they are; others may merge into them.

        Returns:
            The tokens, their layout with their new sizes, and True at tokens that did not merge away.
        """
        rows_of = torch.zeros(self.batch_size, self.size, dtype=torch.long, device=x.device)
        rows_of[self.instance, self.source] = torch.arange(self.rows, device=x.device)
        into = torch.where(self.protected, self.source, merge.into)
        rows = rows_of[self.instance, into]
        merged = weighted_means(x, rows, merge.weight)
        layout = replace(self, sizes=summed_sizes(self.sizes, self.protected, rows)) if merge.sized else self
        return merged, layout, into == self.source

    def some(self, x: Tensor, chosen: Sequence[int]) -> tuple[Tensor, PackedLayout, Tensor]:
        """Some of the instances.

        Args:
            x: Tokens, [S, D].
            chosen: Which, on the host, ascending.

        Returns:
            Their tokens, the layout, and their rows, long.
        """
        begins = [0, *accumulate(self.lengths)]
        lengths = tuple(self.lengths[i] for i in chosen)
        parts = [np.arange(begins[i], begins[i + 1]) for i in chosen]
        rows = to_device(np.concatenate(parts), x.device)
        instance = to_device(np.repeat(np.arange(len(chosen)), lengths), x.device)
        of = to_device(np.array(chosen), x.device)
        ends = to_device(np.cumsum([0, *lengths], dtype=np.int32), x.device)
        layout = replace(self._at(rows, instance, lengths, ends), ids=self.ids[of], real=self.real[of])
        return x.index_select(0, rows), layout, rows

    def split(self, x: Tensor, count: int) -> tuple[tuple[Tensor, PackedLayout], tuple[Tensor, PackedLayout]]:
        """The first tokens of every instance, all of them kept, and the others."""
        begins = count * torch.arange(len(self.cu_seqlens), dtype=torch.int32, device=x.device)
        rows, rest = self._first_before_others(count).split([count * self.batch_size, len(x) - count * self.batch_size])
        left = tuple(length - count for length in self.lengths)
        first = self._at(rows, self.instance.index_select(0, rows), (count,) * self.batch_size, begins)
        others = self._at(rest, self.instance.index_select(0, rest), left, self.cu_seqlens - begins)
        return (x.index_select(0, rows), first), (x.index_select(0, rest), others)

    def join(self, first: Tensor, others: Tensor) -> Tensor:
        """Puts together what :meth:`split` gave: [S, D]."""
        order = self._first_before_others(len(first) // self.batch_size)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return torch.cat([first, others]).index_select(0, place)

    def _first_before_others(self, count: int) -> Tensor:
        """Rows of the first tokens of all instances, then of the others, long [S]; no length is read back from the device."""
        return (self.source >= count).to(torch.uint8).argsort(stable=True)

    def expand(self, x: Tensor, index: Tensor, ids: Tensor) -> tuple[Tensor, PackedLayout]:
        """Instance ``b`` of the result is instance ``index[b]``."""
        (chosen,) = to_host([index])
        lengths = tuple(self.lengths[i] for i in chosen)
        of_each = self.cu_seqlens.diff().index_select(0, index)
        cu_seqlens = pad(of_each.cumsum(0, dtype=torch.int32), (1, 0))
        begins = torch.arange(len(index), device=x.device)
        instance = begins.repeat_interleave(of_each, output_size=sum(lengths))
        shift = self.cu_seqlens.index_select(0, index) - cu_seqlens[:-1]  # from the result's rows to these
        rows = torch.arange(len(instance), device=x.device) + shift.index_select(0, instance)
        layout = self._at(rows, instance, lengths, cu_seqlens)
        return x.index_select(0, rows), replace(layout, ids=ids, real=self.real[index])

    @classmethod
    def concatenate(cls, layouts: Sequence[PackedLayout]) -> PackedLayout:
        """The instances of several layouts of one kind of stream, one after the other."""
        before = list(accumulate((layout.batch_size for layout in layouts[:-1]), initial=0))
        instance = torch.cat([layout.instance + begin for layout, begin in zip(layouts, before, strict=True)])
        rows = accumulate((len(layout.instance) for layout in layouts[:-1]), initial=0)
        ends = [layout.cu_seqlens[1:] + row for layout, row in zip(layouts, rows, strict=True)]
        return cls(
            lengths=tuple(length for layout in layouts for length in layout.lengths),
            cu_seqlens=pad(torch.cat(ends), (1, 0)),
            instance=instance,
            source=torch.cat([layout.source for layout in layouts]),
            protected=torch.cat([layout.protected for layout in layouts]),
            ids=torch.cat([layout.ids for layout in layouts]),
            size=max(layout.size for layout in layouts),
            real=torch.cat([layout.real for layout in layouts]),
            guide_index=layouts[0].guide_index,
            sizes=_joined_sizes(layouts),
        )

    def _at(self, rows: Tensor, instance: Tensor, lengths: tuple[int, ...], cu_seqlens: Tensor) -> PackedLayout:
        return replace(
            self,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            instance=instance,
            source=self.source.index_select(0, rows),
            protected=self.protected.index_select(0, rows),
            sizes=None if self.sizes is None else self.sizes.index_select(0, rows),
        )


def _joined_sizes(layouts: Sequence[PackedLayout]) -> Tensor | None:
    if all(layout.sizes is None for layout in layouts):
        return None
    ones = [torch.ones_like(layout.source, dtype=torch.float32) for layout in layouts]
    return torch.cat([one if layout.sizes is None else layout.sizes for one, layout in zip(ones, layouts, strict=True)])


Layout = PaddedLayout | PackedLayout
