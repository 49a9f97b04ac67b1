"""What flows through the layers: token streams, how they lie, decisions.

One letter legend: ``B`` batch (image-text pairs), ``G`` samples (groups of pairs with one answer), ``I`` images, ``Q`` texts,
``N`` tokens of a stream, ``P`` image patches, ``T`` text tokens, ``H`` heads, ``D`` width, ``L`` layers, ``S`` packed tokens of
a batch, ``A`` texts to give, ``K`` tokens of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from smarttrim_mm.layouts import Layout, Merge, PackedLayout, PaddedLayout
from smarttrim_mm.ops.host import to_host
from smarttrim_mm.utils.direct import direct

__all__ = ["Decision", "Evidence", "Layout", "Merge", "PackedLayout", "PaddedLayout", "Scores", "Streams", "TokenStream"]


@dataclass(frozen=True)
class TokenStream:
    """The tokens of one modality for a batch, and how they lie.

    A policy is written once: per-token values are shaped like ``x`` without its last axis ([B, N] padded, [S] packed), and
    ``layout`` spreads per-instance values over them and lays them out by original position.

    Attributes:
        x: Tokens, [B, N, D] padded or [S, D] packed.
        layout: Which of them are kept, and whose they are.
        carried: What a policy noted of each instance in an earlier layer of the stream (``Decision.carry``), by name, [B, ...].
    """

    x: Tensor
    layout: Layout
    carried: Mapping[str, Tensor] = field(default_factory=dict)

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
        sizes = None if layout.sizes is None else layout.sizes.flatten()
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
            sizes = None if sizes is None else sizes.index_select(0, flat)
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
            sizes=sizes,
        )
        return TokenStream(x, packed, self.carried)

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

    def with_tokens(self, x: Tensor) -> TokenStream:
        """Other tokens that lie as these do; it takes a third of the time of ``replace``, and layers ask for it often."""
        return TokenStream(x, self.layout, self.carried)

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenStream:
        """Applies a token-wise function."""
        return self.with_tokens(direct(function)(self.x))

    def select(self, keep: Tensor) -> TokenStream:
        """Drops what is not kept (bool, or float in {0, 1}); protected tokens stay, dropped ones stay dropped."""
        x, layout = self.layout.select(self.x, keep)
        return TokenStream(x, layout, self.carried)

    def split(self, count: int) -> tuple[TokenStream, TokenStream]:
        """The first ``count`` tokens of every instance, which must be protected, and the others."""
        first, others = self.layout.split(self.x, count)
        return replace(self, x=first[0], layout=first[1]), replace(self, x=others[0], layout=others[1])

    def with_ids(self, ids: Tensor) -> TokenStream:
        """The same tokens under other identities, long [B]."""
        return replace(self, layout=replace(self.layout, ids=ids))

    def expand(self, index: Tensor, ids: Tensor) -> TokenStream:
        """Repeats instances: instance ``b`` of the result is instance ``index[b]`` of this stream.

        Args:
            index: long [B].
            ids: Identities of the result's instances, long [B].
        """
        x, layout = self.layout.expand(self.x, index, ids)
        return TokenStream(x, layout, {name: values[index] for name, values in self.carried.items()})


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
        heads: Per attention name (``'text.self'``), which heads run, [B, H] likewise. Attentions left out run whole. Before
            the layer only.
        run: Which instances run a part of a layer, ``'<stream>.attention'`` (all its attentions) or ``'<stream>.mlp'``, [B]
            likewise; for the others the part is skipped: their tokens stay what they are. Parts left out run for all. Before
            the layer only.
        merge: Per stream name, which tokens merge into others. Between attention and MLP only.
        carry: Per stream name, what is to be found in ``TokenStream.carried`` of its later layers, by name, [B, ...].
    """

    keep: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    run: Mapping[str, Tensor] = field(default_factory=dict)
    merge: Mapping[str, Merge] = field(default_factory=dict)
    carry: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """What a policy wanted to see of one attention; means are over heads. None: it was not wanted.

    Attributes:
        keys: Keys of the tokens that are read, [B, M, d] or [M, d].
        guide_row: Attention that the guide token of the asking stream pays to each token that is read, fp32, [B, M] or [M];
            without a guide token, as ``received``.
        received: Attention that each token that is read receives from the tokens that ask, on average, likewise.
    """

    keys: Tensor | None = None
    guide_row: Tensor | None = None
    received: Tensor | None = None


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
