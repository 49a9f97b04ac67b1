"""What flows through the package: batches, token streams, decisions.

One letter legend: ``B`` batch (image-text pairs), ``G`` samples (groups of pairs with one answer), ``I`` images, ``Q`` texts,
``N`` tokens of a stream, ``P`` image patches, ``T`` text tokens, ``H`` heads, ``D`` width, ``L`` layers, ``S`` packed tokens of
a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class VLMInputs:
    """A batch of image-text pairs; several texts may share one image, and several images one text.

    Attributes:
        images: Normalised pixels, [I, 3, height, width].
        image_index: Which image each text is about, long [B]; None: each has its own, in order.
        image_ids: Stable identity of each image, long [I].
        input_ids: Token ids, padded on the right, long [Q, T].
        text_mask: True at real tokens, bool [Q, T].
        special_mask: True at tokens that no policy may drop (``<s>``, ``</s>``), bool [Q, T].
        sample_ids: Stable identity of each pair, long [B].
        targets: Class indices, long [G], or soft targets, float [G, C]; None where unknown.
        text_index: Which text each pair reads, long [B]; None: each has its own, in order.
        text_ids: Stable identity of each text, long [Q]; None: that of its pair.
        pairs_per_sample: Consecutive pairs that are answered together, G = B / pairs_per_sample: the two images of a sentence
            of NLVR2, the captions that are ranked for an image.

    A batch of texts alone, or of images alone, has none of the other (I = 0 or Q = 0).
    """

    images: Tensor
    image_index: Tensor | None
    image_ids: Tensor
    input_ids: Tensor
    text_mask: Tensor
    special_mask: Tensor
    sample_ids: Tensor
    targets: Tensor | None = None
    text_index: Tensor | None = None
    text_ids: Tensor | None = None
    pairs_per_sample: int = 1

    def to(self, device: torch.device | str) -> VLMInputs:
        """The same batch on another device."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def unshared_images(self) -> VLMInputs:
        """The same pairs, each with an image of its own."""
        if self.image_index is None:
            return self
        return replace(self, images=self.images[self.image_index], image_index=None, image_ids=self.image_ids[self.image_index])

    def unshared(self) -> VLMInputs:
        """The same pairs, each with an image and a text of its own, as an application without a cache would send them."""
        every = self.unshared_images()
        if every.text_index is None:
            return every
        return replace(
            every,
            input_ids=every.input_ids[every.text_index],
            text_mask=every.text_mask[every.text_index],
            special_mask=every.special_mask[every.text_index],
            text_ids=None if every.text_ids is None else every.text_ids[every.text_index],
            text_index=None,
        )

    def all_pairs(self) -> VLMInputs:
        """Every image with every text of the batch: a sample is an image and its Q alternatives.

        Targets are those of retrieval, float [I, Q]: 1 where the text is about the image in this batch.

        Raises:
            ValueError: If a text is read with several images.
        """
        if self.text_index is not None:
            raise ValueError("text_index is given: a text of several images has no image that it would be ranked for")
        images, texts = len(self.image_ids), len(self.input_ids)
        numbers = torch.arange(images, device=self.input_ids.device)
        own = numbers if self.image_index is None else self.image_index
        text_ids = self.sample_ids if self.text_ids is None else self.text_ids
        return replace(
            self,
            image_index=numbers.repeat_interleave(texts),
            text_index=torch.arange(texts, device=numbers.device).repeat(images),
            text_ids=text_ids,
            sample_ids=text_ids.repeat(images),
            targets=(own == numbers[:, None]).float(),
            pairs_per_sample=texts,
        )

    def select(self, samples: Tensor) -> VLMInputs:
        """Some of the samples, in the given order (long [g]), unshared and without columns that are all padding."""
        every = self.unshared()
        steps = torch.arange(self.pairs_per_sample, device=samples.device)
        rows = (samples[:, None] * self.pairs_per_sample + steps).flatten()
        width = int(every.text_mask[rows].sum(1).max())
        return VLMInputs(
            images=every.images[rows],
            image_index=None,
            image_ids=every.image_ids[rows],
            input_ids=every.input_ids[rows, :width],
            text_mask=every.text_mask[rows, :width],
            special_mask=every.special_mask[rows, :width],
            sample_ids=every.sample_ids[rows],
            targets=None if every.targets is None else every.targets[samples],
            text_ids=None if every.text_ids is None else every.text_ids[rows],
            pairs_per_sample=self.pairs_per_sample,
        )


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
        keep = keep.to(self.gate.dtype).masked_fill(self.protected, 1.0)
        return x, replace(self, gate=self.gate * keep, whole=False)

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

    def counts(self) -> Tensor:
        """Kept tokens per instance, fp32 [B]."""
        return self.cu_seqlens.diff().to(torch.float32)

    def full(self) -> Tensor:
        """Real tokens per instance before any decision, fp32 [B]."""
        return self.real

    def floor(self) -> Tensor:
        """Protected tokens per instance, fp32 [B]."""
        return torch.bincount(self.instance, weights=self.protected, minlength=self.batch_size).to(torch.float32)

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

    def select(self, x: Tensor, keep: Tensor) -> tuple[Tensor, PackedLayout]:
        """Leaves out what is neither kept nor protected."""
        rows = ((keep > 0) | self.protected).nonzero().squeeze(1)
        return x.index_select(0, rows), self._take(rows, self.instance.index_select(0, rows), self.batch_size)

    def expand(self, x: Tensor, index: Tensor, ids: Tensor) -> tuple[Tensor, PackedLayout]:
        """Instance ``b`` of the result is instance ``index[b]``."""
        lengths = self.cu_seqlens.diff().index_select(0, index)
        instance = torch.arange(len(index), device=x.device).repeat_interleave(lengths)
        shift = self.cu_seqlens.index_select(0, index) - lengths.cumsum(0) + lengths  # from the result's rows to these
        rows = torch.arange(len(instance), device=x.device) + shift.index_select(0, instance)
        layout = self._take(rows, instance, len(index))
        return x.index_select(0, rows), replace(layout, ids=ids, real=self.real[index])

    def _take(self, rows: Tensor, instance: Tensor, batch_size: int) -> PackedLayout:
        lengths, cu_seqlens = _lengths(instance, batch_size)
        return replace(
            self,
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            instance=instance,
            source=self.source.index_select(0, rows),
            protected=self.protected.index_select(0, rows),
        )


def _lengths(instance: Tensor, batch_size: int) -> tuple[tuple[int, ...], Tensor]:
    counts = torch.bincount(instance, minlength=batch_size)
    cu_seqlens = torch.zeros(batch_size + 1, dtype=torch.int32, device=instance.device)
    cu_seqlens[1:] = counts.cumsum(0)
    return tuple(counts.tolist()), cu_seqlens


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
        if guide_index is None and (special is None or not bool(special.any(1).all())):
            raise ValueError(
                "guide_index is None and special protects no token of some instance; expected at least one protected token "
                "each, as a policy may drop all others"
            )
        whole = valid is None
        valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid
        protected = torch.zeros_like(valid) if special is None else special & valid
        if guide_index is not None:
            protected = protected.clone()
            protected[:, guide_index] = True
        return cls(x, PaddedLayout(valid, valid.to(torch.float32), protected, ids, guide_index, whole))

    def pack(self) -> TokenStream:
        """The same tokens, packed."""
        layout = self.layout
        if isinstance(layout, PackedLayout):
            return self
        flat = layout.kept_grid().flatten().nonzero().squeeze(1)
        size = layout.gate.shape[1]
        instance = flat // size
        lengths, cu_seqlens = _lengths(instance, layout.batch_size)
        packed = PackedLayout(
            lengths=lengths,
            cu_seqlens=cu_seqlens,
            instance=instance,
            source=flat % size,
            protected=layout.protected.flatten().index_select(0, flat),
            ids=layout.ids,
            size=size,
            real=layout.full(),
            guide_index=layout.guide_index,
        )
        x = self.x.flatten(0, 1)
        return TokenStream(x if layout.whole else x.index_select(0, flat), packed)

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
        return replace(self, x=function(self.x))

    def select(self, keep: Tensor) -> TokenStream:
        """Drops what is not kept (bool, or float in {0, 1}); protected tokens stay, dropped ones stay dropped."""
        return TokenStream(*self.layout.select(self.x, keep))

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
