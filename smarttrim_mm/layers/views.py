"""Views of a host's transformer layers: which parameters play which part. No maths, no parameters of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from smarttrim_mm.utils.direct import parameter


@dataclass(frozen=True)
class Projection:
    """Some rows of a linear map: ``F.linear(x, weight[rows], bias[rows])``.

    The parameters are looked up at each use, as they may be replaced (moved off the meta device, loaded by assignment).

    Attributes:
        module: The host module that owns the parameters.
        rows: The rows that belong to this projection; None: all.
        weight_name: Name of the parameter [out, in], possibly several projections fused.
        bias_name: Name of the parameter [out], which may be None.
    """

    module: nn.Module
    rows: slice | None = None
    weight_name: str = "weight"
    bias_name: str = "bias"

    @property
    def weight(self) -> Tensor:
        weight = parameter(self.module, self.weight_name)
        assert weight is not None
        return weight

    @property
    def bias(self) -> Tensor | None:
        return parameter(self.module, self.bias_name)

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    def owners(self) -> list[tuple[nn.Module, str, slice | None]]:
        """The parameters that rows of this projection lie in: their modules and names, and which rows; None: all."""
        names = [self.weight_name] if self.bias is None else [self.weight_name, self.bias_name]
        return [(self.module, name, self.rows) for name in names]

    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weight [out, in] and bias [out] of this projection alone."""
        if self.rows is None:
            return self.weight, self.bias
        return self.weight[self.rows], None if self.bias is None else self.bias[self.rows]


@dataclass(frozen=True)
class AttentionView:
    """One attention module of a layer.

    Attributes:
        name: Unique within its step, ``'<stream>.self'`` or ``'<stream>.cross'``.
        reads: Name of the stream that gives keys and values.
        q: Query projection; ``k`` and ``v`` likewise.
        out: Output projection.
        norm: LayerNorm of this sub-layer.
        heads: Number of heads.
        attention_dropout: Probability, on the attention weights.
        dropout: Probability, on the output.
        drop_path: Probability that an instance goes past this sub-layer in training (stochastic depth).
        first: How many tokens of each instance ask, the first of them; the others go past this sub-layer. None: all ask.
        scale: Scales the channels of the output, between dropout and drop path (LayerScale); None: nothing does.
    """

    name: str
    reads: str
    q: Projection
    k: Projection
    v: Projection
    out: nn.Linear
    norm: nn.LayerNorm
    heads: int
    attention_dropout: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    first: int | None = None
    scale: Callable[[Tensor], Tensor] | None = None

    @property
    def head_width(self) -> int:
        return self.out.in_features // self.heads


@dataclass(frozen=True)
class MlpView:
    """The feed-forward part of a layer.

    Attributes:
        fc1: First Linear.
        act: Its activation.
        fc2: Second Linear.
        norm: LayerNorm of this sub-layer.
        dropout: Probability, on the output.
        drop_path: As in :class:`AttentionView`.
        first: How many tokens of each instance it is for, the first of them; None: all, or all others.
        scale: As in :class:`AttentionView`.
    """

    fc1: nn.Linear
    act: Callable[[Tensor], Tensor]
    fc2: nn.Linear
    norm: nn.LayerNorm
    dropout: float = 0.0
    drop_path: float = 0.0
    first: int | None = None
    scale: Callable[[Tensor], Tensor] | None = None

    @property
    def multiply_adds(self) -> int:
        """Compute per token."""
        return self.fc1.weight.numel() + self.fc2.weight.numel()


@dataclass(frozen=True)
class JoinView:
    """Attentions of the same queries whose outputs make one sub-layer; its norm, dropouts and scale are those of the first.

    Attributes:
        names: Names of the attentions, neighbours in their layer.
        merge: Linear on their concatenated outputs; None: their mean.
    """

    names: tuple[str, ...]
    merge: nn.Linear | None


Sublayer = tuple[tuple[AttentionView, ...], JoinView | None]


@dataclass(frozen=True)
class LayerView:
    """One layer of one stream.

    Attributes:
        attentions: Self-attention first, then cross-attentions.
        mlp: The feed-forward part.
        pre_norm: Whether norms come before their sub-layers (ViT) or after the residual (BERT).
        owner: The host module the parameters belong to; its training flag decides whether dropout acts.
        joins: Which attentions make one sub-layer together; the others are one each.
        first_mlp: What the first tokens have in place of ``mlp`` (the queries of a Q-Former); None: all tokens are alike. The
            backbone protects these tokens from being dropped.

    Raises:
        ValueError: If attentions of the first tokens do not come last, or not of those of ``first_mlp``.
    """

    attentions: tuple[AttentionView, ...]
    mlp: MlpView
    pre_norm: bool
    owner: nn.Module
    joins: tuple[JoinView, ...] = ()
    first_mlp: MlpView | None = None

    def __post_init__(self) -> None:
        asking = [view.first for view in self.attentions]
        alone = [first for first in asking if first is not None]
        if set(alone) - {self.first} or asking != [None] * (len(asking) - len(alone)) + alone:
            raise ValueError(
                f"first of the attentions {[view.name for view in self.attentions]} is {asking}; expected None (all tokens) "
                f"of some, then first_mlp.first, {self.first}, of the others"
            )

    @property
    def width(self) -> int:
        return self.mlp.fc1.in_features

    @property
    def first(self) -> int | None:
        """How many tokens of each instance come first, with a part of their own; None: all tokens are alike."""
        return None if self.first_mlp is None else self.first_mlp.first

    def sublayers(self) -> list[Sublayer]:
        """The attentions of each sub-layer, and how they are joined if there are several."""
        return self._sublayers

    @cached_property
    def _sublayers(self) -> list[Sublayer]:
        groups: list[Sublayer] = []
        for view in self.attentions:
            join = next((join for join in self.joins if view.name in join.names), None)
            if join is not None and groups and groups[-1][1] is join:
                groups[-1] = ((*groups[-1][0], view), join)
            else:
                groups.append(((view,), join))
        return groups


@dataclass(frozen=True)
class StepParts:
    """What may be decided on in a step, by names.

    Attributes:
        streams: All that may be cut, memories included.
        attentions: Those whose heads may be left out.
        skippable: Parts of layers that instances may skip, ``'<stream>.attention'`` and ``'<stream>.mlp'``.
    """

    streams: frozenset[str]
    attentions: frozenset[str]
    skippable: frozenset[str]


@dataclass(frozen=True)
class LayerStep:
    """What runs at one depth: one layer of a uni-modal encoder, or the layers of all streams of a fusion encoder.

    All streams are decided on, then all are cut, then all run on what the step received.

    Attributes:
        name: ``'<stage>.<index>'``.
        layers: Per stream, its layer.
        guides: Streams outside this step whose guide token is at hand, with their widths.
        memories: Streams that the layers read and that have no layer of their own here, with their widths. They may be cut
            before the step like any other.
        anew: Streams that are whole here again, whatever was cut of one of that name before: BLIP reads a text twice.
        guideless: Streams that no token speaks for (``guide_index=None``): where the attention of that token is wanted, that of
            all of them is computed, and counted.

    Raises:
        ValueError: If a layer reads a stream that the step does not have.
    """

    name: str
    layers: Mapping[str, LayerView]
    guides: Mapping[str, int] = field(default_factory=dict)
    memories: Mapping[str, int] = field(default_factory=dict)
    anew: frozenset[str] = frozenset()
    guideless: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for layer in self.layers.values():
            for view in layer.attentions:
                if view.reads not in self.streams():
                    raise ValueError(
                        f"{self.name}: {view.name} reads {view.reads!r}, which has no layer here; give its width in memories="
                        f"{{{view.reads!r}: {view.k.inputs}}}"
                    )

    @property
    def stage(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def index(self) -> int:
        return int(self.name.rpartition(".")[2])

    @cached_property
    def parts(self) -> StepParts:
        """What may be decided on here."""
        attentions = frozenset(view.name for layer in self.layers.values() for view in layer.attentions)
        skippable = frozenset(f"{name}.{part}" for name in self.layers for part in ("attention", "mlp"))
        return StepParts(frozenset(self.streams()), attentions, skippable)

    @cached_property
    def sizes(self) -> tuple[dict[str, int], int, int]:
        """Multiply-adds per token of each part, ``'<stream>.attention'``, ``'<stream>.mlp'``; how many layers and attentions.

        An estimate without attention's scores, of the sizes when it is first asked: projections are counted as if they read
        their own stream.
        """
        per_token: dict[str, int] = {}
        for name, layer in self.layers.items():
            per_head = (
                view.head_width * (view.q.inputs + 2 * view.k.inputs + view.out.out_features) * view.heads
                for view in layer.attentions
            )
            per_token |= {f"{name}.attention": sum(per_head), f"{name}.mlp": layer.mlp.multiply_adds}
        return per_token, len(self.layers), sum(len(layer.attentions) for layer in self.layers.values())

    def streams(self) -> dict[str, int]:
        """Width of every stream that can be cut in this step."""
        return {**{stream: layer.width for stream, layer in self.layers.items()}, **self.memories}

    def widths(self) -> dict[str, int]:
        """Width of every stream whose guide token this step can see."""
        return {**self.streams(), **self.guides}


def modality(stream: str) -> str:
    """What a stream is of: ``'image0'`` and ``'image1'``, the two images of a text, are ``'image'``."""
    return stream.rstrip("0123456789")
