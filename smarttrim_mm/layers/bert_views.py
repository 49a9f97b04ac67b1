"""Views of BERT layers, under the names that transformers, METER, and LAVIS's BLIP and ALBEF share."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from smarttrim_mm.layers.views import AttentionView, JoinView, LayerView, MlpView, Projection


def bert_view(layer: Any, stream: str, *reads: str) -> LayerView:
    """The view of a BERT layer.

    Args:
        layer: A ``BertLayer`` of any of these libraries: ``attention``, ``crossattention``, ``intermediate``, ``output``.
        stream: Name of its stream.
        reads: The streams that its cross-attention reads: none (the cross-attention, if there is one, is left out), one, or
            two of a twin cross-attention (LAVIS's ``nlvr_encoder``: ``self0`` and ``self1``, ``dense0`` and ``dense1``,
            averaged, or concatenated and mapped by ``merge_layer``).
    """
    attentions = [_attention(layer.attention.self, layer.attention.output, f"{stream}.self", stream)]
    joins: tuple[JoinView, ...] = ()
    if len(reads) == 1:
        cross = layer.crossattention
        attentions.append(_attention(cross.self, cross.output, f"{stream}.cross", reads[0]))
    elif reads:
        twins = _twins(layer.crossattention, f"{stream}.cross", reads)
        joins = (JoinView(tuple(twin.name for twin in twins), getattr(layer.crossattention.output, "merge_layer", None)),)
        attentions += twins
    mlp = _mlp(layer.intermediate, layer.output)
    return LayerView(tuple(attentions), mlp, pre_norm=False, owner=layer, joins=joins)


def query_view(layer: Any, stream: str, *reads: str) -> LayerView:
    """The view of a layer of LAVIS's Q-Former on its queries alone, which have an MLP of their own.

    Args:
        layer: A ``BertLayer`` of the Q-Former.
        stream: Name of the queries' stream.
        reads: As in :func:`bert_view`.
    """
    return replace(bert_view(layer, stream, *reads), mlp=_mlp(layer.intermediate_query, layer.output_query))


def qformer_view(layer: Any, stream: str, queries: int, *reads: str) -> LayerView:
    """The view of a layer of LAVIS's Q-Former on queries and text, which attend to each other as one stream.

    The queries alone read other streams, and have an MLP of their own.

    Args:
        layer: A ``BertLayer`` of the Q-Former.
        stream: Name of the stream.
        queries: Their number; they come first.
        reads: As in :func:`bert_view`.
    """
    view = bert_view(layer, stream, *reads)
    attentions = (view.attentions[0], *(replace(cross, first=queries) for cross in view.attentions[1:]))
    return replace(view, attentions=attentions, first_mlp=_mlp(layer.intermediate_query, layer.output_query, queries))


def _mlp(intermediate: Any, output: Any, first: int | None = None) -> MlpView:
    return MlpView(
        fc1=intermediate.dense,
        act=intermediate.intermediate_act_fn,
        fc2=output.dense,
        norm=output.LayerNorm,
        dropout=output.dropout.p,
        first=first,
    )


def _twins(module: Any, name: str, reads: Sequence[str]) -> list[AttentionView]:
    return [
        _attention(getattr(module, f"self{i}"), module.output, f"{name}{i}", stream, getattr(module.output, f"dense{i}"))
        for i, stream in enumerate(reads)
    ]


def _attention(inner: Any, output: Any, name: str, reads: str, out: nn.Linear | None = None) -> AttentionView:
    return AttentionView(
        name=name,
        reads=reads,
        q=Projection(inner.query),
        k=Projection(inner.key),
        v=Projection(inner.value),
        out=output.dense if out is None else out,
        norm=output.LayerNorm,
        heads=inner.num_attention_heads,
        attention_dropout=inner.dropout.p,
        dropout=output.dropout.p,
    )
