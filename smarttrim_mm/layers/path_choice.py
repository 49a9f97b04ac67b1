"""Whether packing a batch pays: what it saves in a layer against what it costs there."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

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
    work = sum(size * streams[_stream(part)].x.shape[:-1].numel() for part, size in per_token.items())
    return work >= _SURE * _cost(layers, attentions, streams)


def packing_pays(step: LayerStep, streams: Streams, run: Mapping[str, Tensor]) -> bool:
    """Whether a CPU is faster through a step on what is kept and run alone than on everything behind masks.

    That is where what is left out saves more multiply-adds than packing is worth. Later steps are taken to be like this one:
    there are as many times more to save as to pay. The same numbers give the same answer; no clock is read.

    Args:
        step: The step.
        streams: Its streams as they are when it has cut them, padded.
        run: Which instances run a part of the step, [B]; parts left out run for all.
    """
    per_token, layers, attentions = step.sizes
    cost = _cost(layers, attentions, streams)
    partly = [part for part in per_token if part in run or not _layout(part, streams).whole]
    work = {part: per_token[part] * _layout(part, streams).gate.numel() for part in partly}
    if sum(work.values()) < cost:
        return False  # were everything gone
    ran = to_host([_ran_on(_layout(part, streams), run.get(part)) for part in partly])
    done = sum(per_token[part] * tokens for part, tokens in zip(partly, ran, strict=True))
    return sum(work.values()) - done >= cost


def _ran_on(layout: PaddedLayout, gate: Tensor | None) -> Tensor:
    """How many kept tokens a part is run on, that all instances run or those whose gate says so."""
    return layout.gate.sum() if gate is None else (layout.counts() * (gate > 0)).sum()


def _layout(part: str, streams: Streams) -> PaddedLayout:
    layout = streams[_stream(part)].layout
    assert isinstance(layout, PaddedLayout)
    return layout


def _stream(part: str) -> str:
    return part.rpartition(".")[0]


def _cost(layers: int, attentions: int, streams: Streams) -> int:
    batch = next(iter(streams.values())).layout.batch_size
    return layers * _PER_LAYER + batch * attentions * _PER_CALL
