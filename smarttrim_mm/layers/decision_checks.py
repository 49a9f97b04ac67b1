"""What may not be decided at a place is refused: it would be ignored, or counted wrongly."""

from __future__ import annotations

from collections.abc import Iterable

from smarttrim_mm.layers.evidence import GUIDE_ROW, Looks
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.structures import Decision, Streams


def check_first(step: LayerStep, decision: Decision) -> None:
    """Checks what was decided before a layer.

    Raises:
        ValueError: If it merges tokens, or names a stream, an attention or a part that the step does not have.
    """
    if decision.merge:
        raise ValueError(
            f"{step.name}: before_layer merges tokens of {sorted(decision.merge)}; expected merges from after_attention, "
            "between attention and MLP"
        )
    known = step.parts
    _require_known(step, "keep", decision.keep, known.streams)
    _require_known(step, "heads", decision.heads, known.attentions)
    _require_known(step, "run", decision.run, known.skippable)
    _require_known(step, "carry", decision.carry, known.streams)


def check_second(step: LayerStep, decision: Decision, reduces: frozenset[str]) -> None:
    """Checks what was decided between attention and MLP.

    Args:
        step: The step.
        decision: What was decided.
        reduces: Streams that the policy may cut or merge there.

    Raises:
        ValueError: If it is about heads or skipped parts, which come too late, or about streams that are not among these.
    """
    if decision.heads or decision.run:
        raise ValueError(
            f"{step.name}: after_attention decides on {[*decision.heads, *decision.run]}; expected tokens alone, as the "
            "attentions have run. Decide on heads and skipped parts in before_layer"
        )
    others = sorted({*decision.keep, *decision.merge} - reduces)
    if others:
        raise ValueError(
            f"{step.name}: after_attention cuts or merges {others}, and reduces() says {sorted(reduces)}; name all streams "
            "there, as compute is counted by it"
        )
    _require_known(step, "carry", decision.carry, step.parts.streams)


def check_looks(step: LayerStep, looks: Looks, decision: Decision, streams: Streams) -> None:
    """Checks what a policy wants to see of attentions.

    Args:
        step: The step.
        looks: What is wanted.
        decision: What was decided before the layer.
        streams: The streams of the step.

    Raises:
        ValueError: If heads or instances are left out of one of them, or it is the row of a guide token that the stream does
            not have, which the step does not say.
    """
    partly = [name for name in looks if name in decision.heads or f"{_asking(name)}.attention" in decision.run]
    if partly:
        raise ValueError(
            f"{step.name}: the policy looks at {partly} and leaves out heads or instances there; expected attentions that "
            "run whole. Let it decide on heads in other layers"
        )
    for name in (name for name, wanted in looks.items() if GUIDE_ROW in wanted):
        stream = _asking(name)
        without = streams[stream].layout.guide_index is None
        if without != (stream in step.guideless):
            raise ValueError(
                f"{step.name}: the policy looks at the guide token's row of {name}, whose stream starts with guide_index="
                f"{streams[stream].layout.guide_index}, and guideless of the step is {sorted(step.guideless)}; expected it to "
                "name exactly the streams without a guide token, as what is looked at instead costs more"
            )


def _asking(attention: str) -> str:
    """The stream that an attention belongs to."""
    return attention.rpartition(".")[0]


def _require_known(step: LayerStep, field: str, names: Iterable[str], known: frozenset[str]) -> None:
    if not known.issuperset(names):
        raise ValueError(
            f"{step.name}: {field} of a decision names {sorted(set(names) - known)}; this step has {sorted(known)}"
        )
