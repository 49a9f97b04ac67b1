"""When a gate has collapsed: by what it let through of late, with a margin before it counts as recovered."""

from __future__ import annotations

from collections.abc import Sequence

OFF, ON, SAME = "all off", "all on", "the same for every input"


def collapse_of(
    means: Sequence[float], spreads: Sequence[float], known: str | None, *, edge: float, least_spread: float, missed: bool
) -> str | None:
    """Names the collapse of one gate.

    Args:
        means: Shares that it let through of late, in 0-1, at least one.
        spreads: Their standard deviations over the instances of a batch; none where batches hold single instances.
        known: Its collapse until now: leaving it takes twice the margin that entering it took.
        edge: A mean share below this is all off, above 1 - ``edge`` all on.
        least_spread: A mean spread below this, between the edges, is one decision for all inputs.
        missed: Whether the target asks for less than what is kept: else a gate that lets everything through is no collapse.

    Returns:
        ``OFF``, ``ON``, ``SAME`` or None.
    """
    mean = sum(means) / len(means)
    if mean < edge * (2 if known == OFF else 1):
        return OFF
    if mean > 1 - edge * (2 if known == ON else 1):
        return ON if missed or known == ON else None
    spread = sum(spreads) / len(spreads) if spreads else None
    if spread is not None and spread < least_spread * (2 if known == SAME else 1):
        return SAME
    return None
