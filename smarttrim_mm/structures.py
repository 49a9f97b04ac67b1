"""What flows through the layers: token streams, how they lie, decisions.

One letter legend: ``B`` batch (image-text pairs), ``G`` samples (groups of pairs with one answer), ``I`` images, ``Q`` texts,
``N`` tokens of a stream, ``P`` image patches, ``T`` text tokens, ``H`` heads, ``D`` width, ``L`` layers, ``S`` packed tokens of
a batch, ``A`` texts to give, ``K`` tokens of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from smarttrim_mm.attention.base import Sequences
from smarttrim_mm.ops.attention import key_bias
from smarttrim_mm.ops.host import to_host
from smarttrim_mm.ops.row_filling import take_rows


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
    """

    valid: Tensor
    gate: Tensor
    protected: Tensor
    ids: Tensor
    guide_index: int | None
    whole: bool

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

    def to_grid(self, values: Tensor, fill: float) -> Tensor:
        """Per-token values with ``fill`` wherever no token is kept, [B, N]."""
        return values.masked_fill(~self.kept_grid(), fill)

    def from_grid(self, grid: Tensor) -> Tensor:
        """Values at the tokens of a grid over the original positions, [B, N]."""
        return grid

    def select(self, x: Tensor, keep: Tensor) -> tuple[Tensor, PaddedLayout]:
        """Closes the gate of what is not kept; what was dropped before stays dropped."""
        # a protected token takes the constant 1: no gradient reaches a decision that has no effect
        keep = keep | self.protected if keep.dtype is torch.bool else keep.to(self.gate.dtype).masked_fill(self.protected, 1.0)
        return x, replace(self, gate=self.gate * keep, whole=False)

    def split(self, x: Tensor, count: int) -> tuple[tuple[Tensor, PaddedLayout], tuple[Tensor, PaddedLayout]]:
        """The first tokens of every instance, and the others."""
        return self._columns(x, slice(count)), self._columns(x, slice(count, None))

    def join(self, first: Tensor, others: Tensor) -> Tensor:
        """Puts together what :meth:`split` gave: [B, N, D]."""
        return torch.cat([first, others], 1)

    def _columns(self, x: Tensor, columns: slice) -> tuple[Tensor, PaddedLayout]:
        valid, gate, protected = (grid[:, columns] for grid in (self.valid, self.gate, self.protected))
        return x[:, columns], replace(self, valid=valid, gate=gate, protected=protected)

    def expand(self, x: Tensor, index: Tensor, ids: Tensor) -> tuple[Tensor, PaddedLayout]:
        """Row ``b`` of the result is row ``index[b]``."""
        rows = (self.valid[index], self.gate[index], self.protected[index])
        return x[index], PaddedLayout(*rows, ids=ids, guide_index=self.guide_index, whole=self.whole)


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

    def to_grid(self, values: Tensor, fill: float) -> Tensor:
        """Per-token values laid over the original positions, ``fill`` elsewhere, [B, N]."""
        grid = values.new_full((self.batch_size, self.size), fill)
        grid[self.instance, self.source] = values
        return grid

    def from_grid(self, grid: Tensor) -> Tensor:
        """Values at the tokens of a grid over the original positions, [S]."""
        return grid[self.instance, self.source]

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
        )

    def _at(self, rows: Tensor, instance: Tensor, lengths: tuple[int, ...], cu_seqlens: Tensor) -> PackedLayout:
        return replace(
            self,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            instance=instance,
            source=self.source.index_select(0, rows),
            protected=self.protected.index_select(0, rows),
        )


Layout = PaddedLayout | PackedLayout


@dataclass(frozen=True)
class TokenStream:
    """The tokens of one modality for a batch, and how they lie.

    A policy is written once: per-token values are shaped like ``x`` without its last axis ([B, N] padded, [S] packed), and
    ``layout`` spreads per-instance values over them and lays them out by original position.

    Attributes:
        x: Tokens, [B, N, D] padded or [S, D] packed.
        layout: Which of them are kept, and whose they are.
    """

    x: Tensor
    layout: Layout

    @classmethod
    def start(
        cls,
        x: Tensor,
        *,
        ids: Tensor,
        valid: Tensor | None = None,
        special: Tensor | None = None,
        guide_index: int | None = 0,
    ) -> TokenStream:
        """Wraps the embeddings of a stream, padded.

        Args:
            x: Tokens, [B, N, D].
            ids: Stable identity of each instance, long [B].
            valid: True at real tokens, bool [B, N]; None: all.
            special: True at tokens that must survive, bool [B, N]; the guide token is protected in any case.
            guide_index: Position of the guide token, 0 or None.

        Raises:
            ValueError: If the guide token is not the first one, or no token of an instance would be protected.
        """
        if guide_index not in (0, None):
            raise ValueError(f"guide_index is {guide_index}; expected 0 (the first token speaks for the stream) or None")
        if guide_index is None and (special is None or to_host([special.any(1).all()]) != [1]):
            raise ValueError(
                "guide_index is None and special protects no token of some instance; expected at least one protected token "
                "each, as a policy may drop all others"
            )
        whole = valid is None
        valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid
        protected = torch.zeros_like(valid) if special is None else special & valid
        if guide_index is not None:
            protected.select(1, guide_index).fill_(True)  # a new tensor: it is either zeros or a product
        return cls(x, PaddedLayout(valid, valid.to(torch.float32), protected, ids, guide_index, whole))

    def pack(self) -> TokenStream:
        """The same tokens, packed."""
        layout = self.layout
        if isinstance(layout, PackedLayout):
            return self
        batch, size = layout.gate.shape
        x, source, protected = self.x.flatten(0, 1), layout.positions().expand(batch, -1).flatten(), layout.protected.flatten()
        if layout.whole:
            lengths, cu_seqlens, instance = _alike(batch, size, x.device)
        else:
            kept = layout.gate > 0
            cu_seqlens = pad(kept.sum(1).cumsum(0, dtype=torch.int32), (1, 0))
            (ends,) = to_host([cu_seqlens])
            lengths = tuple(end - begin for begin, end in pairwise(ends))
            flat = torch.nonzero_static(kept.flatten(), size=ends[-1]).squeeze(1)
            instance = flat // size
            x, source, protected = (each.index_select(0, flat) for each in (x, source, protected))
        packed = PackedLayout(
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            instance=instance,
            source=source,
            protected=protected,
            ids=layout.ids,
            size=layout.size,
            real=layout.full(),
            guide_index=layout.guide_index,
        )
        return TokenStream(x, packed)

    def pad(self) -> tuple[Tensor, Tensor]:
        """The kept tokens as a host's decoder or head expects them.

        Returns:
            Tokens [B, longest, D] (zeros where there are none) and a bool mask [B, longest].
        """
        layout = self.pack().layout
        assert isinstance(layout, PackedLayout)
        x = self.pack().x
        local = torch.arange(x.shape[0], device=x.device) - layout.cu_seqlens[:-1].index_select(0, layout.instance)
        padded = x.new_zeros(layout.batch_size, max(layout.lengths), x.shape[1])
        mask = torch.zeros(padded.shape[:2], dtype=torch.bool, device=x.device)
        padded[layout.instance, local] = x
        mask[layout.instance, local] = True
        return padded, mask

    def guide(self) -> Tensor:
        """The token that speaks for the stream, [B, D]."""
        return self.layout.guide(self.x)

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenStream:
        """Applies a token-wise function."""
        return TokenStream(function(self.x), self.layout)

    def select(self, keep: Tensor) -> TokenStream:
        """Drops what is not kept (bool, or float in {0, 1}); protected tokens stay, dropped ones stay dropped."""
        return TokenStream(*self.layout.select(self.x, keep))

    def split(self, count: int) -> tuple[TokenStream, TokenStream]:
        """The first ``count`` tokens of every instance, which must be protected, and the others."""
        first, others = self.layout.split(self.x, count)
        return TokenStream(*first), TokenStream(*others)

    def with_ids(self, ids: Tensor) -> TokenStream:
        """The same tokens under other identities, long [B]."""
        return replace(self, layout=replace(self.layout, ids=ids))

    def expand(self, index: Tensor, ids: Tensor) -> TokenStream:
        """Repeats instances: instance ``b`` of the result is instance ``index[b]`` of this stream.

        Args:
            index: long [B].
            ids: Identities of the result's instances, long [B].
        """
        return TokenStream(*self.layout.expand(self.x, index, ids))


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept must serve passes with gradients too
def _alike(batch: int, size: int, device: torch.device) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """How instances of one size lie end to end: ``lengths``, ``cu_seqlens`` and ``instance`` of a :class:`PackedLayout`."""
    begins = torch.arange(0, batch * size + 1, size, dtype=torch.int32, device=device)
    return (size,) * batch, begins, torch.arange(batch, device=device).repeat_interleave(size)


Streams = Mapping[str, TokenStream]


@dataclass(frozen=True)
class Decision:
    """What a policy wants of a layer.

    Attributes:
        keep: Per stream name, which tokens stay; bool, or float in {0, 1} with a straight-through gradient; shaped like
            the stream's tokens ([B, N] or [S]). Streams left out stay whole.
        heads: Per attention name (``'text.self'``), which heads run, [B, H] likewise. Attentions left out run whole.
    """

    keep: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """How much a policy wants each token and head of a layer: the more, the likelier it stays.

    Attributes:
        keep: Per stream name, a score for each token, shaped like the stream's tokens ([B, N] or [S]).
        heads: Per attention name, a score for each head, [B, H].
        threshold: What is kept at inference has at least this score, and scores are probabilities in 0-1; None: there is no
            such number.
    """

    keep: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    threshold: float | None = None
