"""Scores all tokens and heads of a step at once, with the fewest operations: the inference of the trimmers of this package.

What the trimmers of a step compute from guide tokens is one product of all their first Linears, one GELU, and one product of
the heads' second ones; each stream's layer norm serves its tokens and, as it goes row by row, its guide. The zero blocks of
the stacked weights are multiplied too, and counted (:func:`zero_multiply_adds`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from smarttrim_mm.ops.row_filling import fill_rows
from smarttrim_mm.structures import Layout, PackedLayout, Streams, TokenStream
from smarttrim_mm.trimmers.head_trimmer import HeadTrimmer
from smarttrim_mm.trimmers.token_trimmer import Query, TokenTrimmer
from smarttrim_mm.utils.watch import WatchedModules, has_own_call

_CHANNELS_PER_DIRECTION = 24  # a token is multiplied with the directions of all instances while they are few: see below


def is_fusible(trimmer: nn.Module) -> bool:
    """Whether a trimmer is exactly one of this package's, so that the fused pass computes what it would."""
    plain = {TokenTrimmer: (nn.Linear, Query, nn.ModuleDict), HeadTrimmer: (nn.Linear,)}.get(type(trimmer))
    if plain is None:
        return False
    inner = [module for module in trimmer.modules() if module is not trimmer]
    return (
        all(type(module) in plain for module in inner)
        and not any(has_own_call(module) for module in trimmer.modules())
        and all(type(weight) is nn.Parameter and not weight.is_inference() for weight in trimmer.parameters())
    )


def working_dtype(weight: Tensor) -> torch.dtype:
    """What products with a weight are computed in: its own type, or autocast's."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def similarities(x: Tensor, layout: Layout, direction: Tensor, bias: Tensor) -> Tensor:
    """Products of each token with the direction of its own instance.

    In a small packed batch each token is multiplied with all directions, and its own product is taken: this needs no second
    [S, D]. There are at most D / 24 more than needed, one in 300 of the multiply-adds of the transformer layer (12 D^2).

    Args:
        x: Tokens, [B, N, D] padded or [S, D] packed; further rows are filling.
        layout: How they lie.
        direction: [B, D].
        bias: Is added, [1].

    Returns:
        [B N, 1] or [S, 1].
    """
    if not isinstance(layout, PackedLayout):
        # directions as rows: with columns of one number a CPU took 6 to 15 times as long
        return torch.baddbmm(bias, direction.unsqueeze(1), x.transpose(1, 2)).view(-1, 1)
    if layout.batch_size - 1 > x.shape[-1] // _CHANNELS_PER_DIRECTION:
        return (x[: layout.rows] * layout.per_token(direction)).sum(-1, keepdim=True) + bias
    products = torch.addmm(bias, direction, x.t())  # [B, S]
    if products.shape[1] > layout.rows:
        products = products[:, : layout.rows]
    return (products if layout.batch_size == 1 else products.gather(0, layout.instance.unsqueeze(0))).view(-1, 1)


@dataclass(frozen=True)
class FusedTokens:
    """Weights of one token trimmer; D channels, h hidden.

    Attributes:
        fc1: [D, h], and its bias [h]; None: no local score.
        fc2: [h, 1].
        key: [rank, D]; None: no global score.
        query: Where the columns of the scaled query lie in what all trimmers make of the guides.
        bias: [1].
    """

    fc1: tuple[Tensor, Tensor] | None
    fc2: Tensor | None
    key: Tensor | None
    query: slice
    bias: Tensor

    @classmethod
    def of(cls, trimmer: TokenTrimmer, query: slice, dtype: torch.dtype) -> FusedTokens:
        """The weights of a trimmer."""
        fc1 = fc2 = key = None
        if trimmer.fc1 is not None and trimmer.fc2 is not None:
            fc1 = (trimmer.fc1.weight.detach().to(dtype).t(), trimmer.fc1.bias.detach().to(dtype))
            fc2 = trimmer.fc2.weight.detach().to(dtype).t()
        if trimmer.key is not None:
            key = trimmer.key.weight.detach().to(dtype)
        return cls(fc1, fc2, key, query, trimmer.bias.detach().to(dtype).view(1))

    def __call__(self, x: Tensor, layout: Layout, of_guides: Tensor | None) -> Tensor:
        """Keep-minus-drop logits, fp32 [B, N] or [S].

        Args:
            x: Normalised tokens, [B, N, D] or [S, D]; further rows are filling.
            layout: How they lie.
            of_guides: What all trimmers make of the guides, [B, ...]; None: nothing is.
        """
        logits = self.bias
        if self.key is not None and of_guides is not None:
            logits = similarities(x, layout, of_guides[:, self.query] @ self.key, logits)
        if self.fc1 is not None and self.fc2 is not None:
            weight, bias = self.fc1
            hidden = gelu(torch.addmm(bias, x.flatten(0, -2), weight))
            if len(logits) in (1, len(hidden)):
                logits = torch.addmm(logits, hidden, self.fc2)
            else:  # rows of filling have no similarity
                logits = logits + (hidden @ self.fc2)[: len(logits)]
        logits = logits.float()
        return logits[: layout.rows, 0] if isinstance(layout, PackedLayout) else logits.view(x.shape[:-1])


class FusedStep:
    """The trimmers of one step as a few products.

    Args:
        tokens: Token trimmers by stream.
        heads: Head trimmers by attention.
        dtype: What is computed in.
    """

    def __init__(self, tokens: Mapping[str, TokenTrimmer], heads: Mapping[str, HeadTrimmer], dtype: torch.dtype) -> None:
        self.dtype = dtype
        asking = {name: trimmer for name, trimmer in tokens.items() if trimmer.key is not None}
        widths = _widths([*heads.values(), *asking.values()])
        self.guides = tuple(widths)
        self.heads = {name: trimmer.fc2.out_features for name, trimmer in heads.items()}
        self._first = self._second = None
        rows = [trimmer.fc1.out_features for trimmer in heads.values()] + [trimmer.rank for trimmer in asking.values()]
        self.hidden = sum(rows[: len(heads)])
        if widths:
            first: list[Tensor] = [_over_guides(trimmer.fc1.weight, trimmer.guides, widths) for trimmer in heads.values()]
            first += [_over_guides(_query(trimmer), tuple(trimmer.query), widths) for trimmer in asking.values()]
            biases: list[Tensor] = [trimmer.fc1.bias for trimmer in heads.values()]
            biases += [trimmer.bias.new_zeros(trimmer.rank) for trimmer in asking.values()]
            self._first = (torch.cat(first).to(dtype).t(), torch.cat(biases).to(dtype))
        if heads:
            second = torch.block_diag(*(trimmer.fc2.weight for trimmer in heads.values()))
            self._second = (second.to(dtype).t(), torch.cat([trimmer.fc2.bias for trimmer in heads.values()]).to(dtype))
        ends = torch.tensor(rows).cumsum(0).tolist()[len(heads) :]
        queries = {name: slice(end - asking[name].rank, end) for name, end in zip(asking, ends, strict=True)}
        self.tokens = {name: FusedTokens.of(each, queries.get(name, slice(0)), dtype) for name, each in tokens.items()}

    def __call__(self, streams: Streams, guides: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Scores everything.

        Args:
            streams: The streams of the step, padded or packed.
            guides: Guide tokens of streams outside the step, [B, D] each.

        Returns:
            Logits of tokens by stream, fp32 [B, N] or [S], and those of all heads, fp32 [B, H of all attentions], None
            without.
        """
        normal = {name: self._normal(fill_rows(streams[name].x)) for name in self.tokens if name in streams}
        of_guides = heads = None
        if self._first is not None:
            weight, bias = self._first
            at_hand = [self._guide(name, normal, streams, guides) for name in self.guides]
            of_guides = torch.addmm(bias, at_hand[0] if len(at_hand) == 1 else torch.cat(at_hand, 1), weight)
        if self._second is not None and of_guides is not None:
            weight, bias = self._second
            heads = torch.addmm(bias, gelu(of_guides[:, : self.hidden]), weight).float()
        return {name: self.tokens[name](x, streams[name].layout, of_guides) for name, x in normal.items()}, heads

    def by_attention(self, values: Tensor) -> dict[str, Tensor]:
        """Splits what belongs to all heads, [B, H of all attentions], by attention: [B, H] each."""
        return dict(zip(self.heads, values.split(list(self.heads.values()), 1), strict=True))

    def _normal(self, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:]).to(self.dtype)

    def _guide(
        self, name: str, normal: Mapping[str, Tensor], streams: Mapping[str, TokenStream], guides: Mapping[str, Tensor]
    ) -> Tensor:
        """A normalised guide token, [B, D]: a row of its stream's tokens if those are normalised already."""
        if name not in streams:
            return self._normal(guides[name])
        stream = streams[name]
        if name not in normal or stream.layout.guide_index is None:
            return self._normal(stream.guide())
        if isinstance(stream.layout, PackedLayout) and stream.layout.batch_size == 1:
            return normal[name][:1]
        return stream.layout.guide(normal[name])


def zero_multiply_adds(tokens: Iterable[nn.Module], heads: Iterable[nn.Module]) -> int:
    """Multiply-adds of an instance with the zero blocks of the stacked weights of a step.

    Args:
        tokens: Its token trimmers; those that cannot be fused have no part in it.
        heads: Its head trimmers likewise.
    """
    asking = [each for each in tokens if is_fusible(each) and isinstance(each, TokenTrimmer) and each.key is not None]
    scoring = [each for each in heads if is_fusible(each) and isinstance(each, HeadTrimmer)]
    width = sum(_widths([*scoring, *asking]).values())
    rows = [(each.fc1.out_features, each) for each in scoring] + [(each.rank, each) for each in asking]
    first = sum(count * (width - sum(each.widths.values())) for count, each in rows)
    hidden, outputs = ([getattr(each, name).out_features for each in scoring] for name in ("fc1", "fc2"))
    return first + sum(hidden) * sum(outputs) - sum(h * n for h, n in zip(hidden, outputs, strict=True))


def _widths(trimmers: Iterable[TokenTrimmer | HeadTrimmer]) -> dict[str, int]:
    """Widths of all guide tokens that trimmers read, by name."""
    return {name: width for trimmer in trimmers for name, width in trimmer.widths.items()}


def _query(trimmer: TokenTrimmer) -> Tensor:
    """All queries of a trimmer, side by side and scaled, [rank, sum of widths]."""
    queries: list[Any] = list(trimmer.query.values())
    return torch.cat([query.weight for query in queries], 1) * trimmer.rank**-0.5


def _over_guides(weight: Tensor, own: Sequence[str], widths: Mapping[str, int]) -> Tensor:
    """Spreads a weight over the columns of all guides, zero where it reads none of them.

    Args:
        weight: [rows, sum of the widths of its own guides].
        own: Its own guides, in the order of its columns.
        widths: Width of each guide of the step.

    Returns:
        [rows, sum of all widths].
    """
    parts = dict(zip(own, weight.split([widths[name] for name in own], 1), strict=True))
    return torch.cat([parts[name] if name in parts else weight.new_zeros(len(weight), widths[name]) for name in widths], 1)


class FusedTrimmers:
    """Keeps the stacked weights of each step until something changes. They are no part of any state, nor of any copy."""

    def __init__(self) -> None:
        self._built: dict[str, _Built] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FusedTrimmers, ()

    def clear(self) -> None:
        """Forgets all stacked weights."""
        self._built.clear()

    def step(
        self, name: str, tokens: tuple[nn.ModuleDict, Mapping[str, str]], heads: tuple[nn.ModuleDict, Mapping[str, str]]
    ) -> FusedStep | None:
        """The fused pass of a step.

        Args:
            name: Of the step.
            tokens: All token trimmers, and the names of the step's by stream.
            heads: All head trimmers, and the names of the step's by attention.

        Returns:
            What scores those of the trimmers that can be fused; None: none can.
        """
        built = self._built.get(name)
        if built is None or not built.holds(tokens[0], heads[0]):
            built = self._built[name] = _Built.of(tokens, heads)
        return built.step


@dataclass(frozen=True)
class _Built:
    """A fused step, and what it was built of."""

    step: FusedStep | None
    containers: tuple[nn.ModuleDict, nn.ModuleDict]
    watched: tuple[WatchedModules, ...]
    weight: Tensor | None

    @classmethod
    @torch.inference_mode(False)
    @torch.no_grad()
    def of(cls, tokens: tuple[nn.ModuleDict, Mapping[str, str]], heads: tuple[nn.ModuleDict, Mapping[str, str]]) -> _Built:
        fusible: list[dict[str, str]] = [
            {place: key for place, key in keys.items() if key in container and is_fusible(container[key])}
            for container, keys in (tokens, heads)
        ]
        of_tokens: dict[str, Any] = {place: tokens[0][key] for place, key in fusible[0].items()}
        of_heads: dict[str, Any] = {place: heads[0][key] for place, key in fusible[1].items()}
        weights = [weight for trimmer in (*of_tokens.values(), *of_heads.values()) for weight in trimmer.parameters()]
        alike = len({(weight.dtype, weight.device) for weight in weights}) == 1
        watched = tuple(
            WatchedModules(container, keys.values()) for (container, _), keys in zip((tokens, heads), fusible, strict=True)
        )
        step = FusedStep(of_tokens, of_heads, working_dtype(weights[0])) if alike else None
        return cls(step, (tokens[0], heads[0]), watched, weights[0] if alike else None)

    def holds(self, tokens: nn.ModuleDict, heads: nn.ModuleDict) -> bool:
        """Whether it would be built the same again."""
        return (
            self.containers[0] is tokens
            and self.containers[1] is heads
            and all(watched.unchanged() for watched in self.watched)
            and (self.step is None or self.weight is None or self.step.dtype == working_dtype(self.weight))
        )
