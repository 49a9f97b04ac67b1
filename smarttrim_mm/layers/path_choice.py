"""Whether packing a batch pays: what it saves in a layer against what it costs there."""

from __future__ import annotations

from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.ops.host import to_host
from smarttrim_mm.structures import PaddedLayout, Streams

# Rules of thumb from the profile of a METER of 1.1 M parameters on one core of an AMD EPYC: what packing adds to a layer takes
# as long as so many multiply-adds, and the call of an attention for each instance as so many more.
_PER_LAYER = 2**20
_PER_CALL = 2**19
_SURE = 24  # times the cost: from there on a twenty-fourth of the tokens pays


def is_large(step: LayerStep, streams: Streams) -> bool:
    """Whether any pruning pays for packing in a step; arguments as :func:`packing_pays`."""
    per_token, layers, attentions = step.sizes
    work = sum(size * streams[name].x.shape[:-1].numel() for name, size in per_token.items())
    return work >= _SURE * _cost(layers, attentions, streams)


def packing_pays(step: LayerStep, streams: Streams) -> bool:
    """Whether a CPU is faster through a step on the kept tokens alone than on all of them behind masks.

    That is where the tokens that are gone save more multiply-adds than packing is worth. Later steps are taken to be like this
    one: there are as many times more to save as to pay. The same numbers give the same answer; no clock is read.

    Args:
        step: The step.
        streams: Its streams as they are when it has cut them, padded.
    """
    per_token, layers, attentions = step.sizes
    cost = _cost(layers, attentions, streams)
    cut = {name: layout for name in per_token if isinstance(layout := streams[name].layout, PaddedLayout) and not layout.whole}
    if sum(per_token[name] * layout.gate.numel() for name, layout in cut.items()) < cost:
        return False  # were everything gone
    kept = to_host([layout.gate.sum() for layout in cut.values()])
    gone = (layout.gate.numel() - count for layout, count in zip(cut.values(), kept, strict=True))
    return sum(per_token[name] * count for name, count in zip(cut, gone, strict=True)) >= cost


def _cost(layers: int, attentions: int, streams: Streams) -> int:
    batch = next(iter(streams.values())).layout.batch_size
    return layers * _PER_LAYER + batch * attentions * _PER_CALL
