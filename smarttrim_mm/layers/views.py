"""Views of a host's transformer layers: which parameters play which part. No maths, no parameters of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn


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
        return getattr(self.module, self.weight_name)

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.module, self.bias_name)

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

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
    """

    fc1: nn.Linear
    act: Callable[[Tensor], Tensor]
    fc2: nn.Linear
    norm: nn.LayerNorm
    dropout: float = 0.0


@dataclass(frozen=True)
class LayerView:
    """One layer of one stream.

    Attributes:
        attentions: Self-attention first, then cross-attentions.
        mlp: The feed-forward part.
        pre_norm: Whether norms come before their sub-layers (ViT) or after the residual (BERT).
        owner: The host module the parameters belong to; its training flag decides whether dropout acts.
    """

    attentions: tuple[AttentionView, ...]
    mlp: MlpView
    pre_norm: bool
    owner: nn.Module

    @property
    def width(self) -> int:
        return self.mlp.fc1.in_features


@dataclass(frozen=True)
class LayerStep:
    """What runs at one depth: one layer of a uni-modal encoder, or the layers of all streams of a fusion encoder.

    All streams are decided on, then all are cut, then all run on what the step received.

    Attributes:
        name: ``'<stage>.<index>'``.
        layers: Per stream, its layer.
        guides: Streams outside this step whose guide token is at hand, with their widths.
    """

    name: str
    layers: Mapping[str, LayerView]
    guides: Mapping[str, int] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def index(self) -> int:
        return int(self.name.rpartition(".")[2])

    def widths(self) -> dict[str, int]:
        """Width of every stream whose guide token this step can see."""
        return {**{stream: layer.width for stream, layer in self.layers.items()}, **self.guides}
