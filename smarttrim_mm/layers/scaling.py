"""Views of layers whose heads and FFN units are scaled: a search tries on them what slicing will take away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from smarttrim_mm.layers.slices import parts_of
from smarttrim_mm.layers.views import AttentionView, LayerView, MlpView


@dataclass(frozen=True)
class ScaledLinear:
    """A Linear whose inputs are scaled: the scales are folded into its weight, so that whoever reads the weight sees them.

    Attributes:
        weight: [out, in].
        bias: [out] or None.
    """

    weight: Tensor
    bias: Tensor | None

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def scale_layer(stream: str, layer: LayerView, scale: Callable[[str], Tensor]) -> LayerView:
    """The same layer with the output of every head and the activation of every FFN unit scaled.

    Both are inputs of a Linear, so that the tokens are not touched.

    Args:
        stream: Name of the layer's stream.
        layer: The layer.
        scale: Gives the scales of an attention's heads, [H], or of a feed-forward part's units, [F], by the names of
            :func:`~smarttrim_mm.layers.slices.parts_of`.
    """
    parts = {name: _scaled(view, scale(name)) for name, view in parts_of(stream, layer).items()}
    attentions = tuple(parts[view.name] for view in layer.attentions)
    return replace(layer, attentions=attentions, mlp=parts[f"{stream}.mlp"], first_mlp=parts.get(f"{stream}.first_mlp"))


def _scaled(view: AttentionView | MlpView, scales: Tensor) -> Any:
    if isinstance(view, AttentionView):
        return replace(view, out=_fold(view.out, scales.repeat_interleave(view.head_width)))
    return replace(view, fc2=_fold(view.fc2, scales))


def _fold(host: nn.Linear, scales: Tensor) -> Any:
    """In place of a Linear in a view."""
    return ScaledLinear(host.weight * scales.to(host.weight.dtype), host.bias)
