"""What policies that rank tokens by attention share: where they decide, and what they do with the ranking."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from smarttrim_mm.layers.views import AttentionView, LayerStep
from smarttrim_mm.ops.fusing import fuse_rest, kept_counts
from smarttrim_mm.ops.ranking import keep_top
from smarttrim_mm.policies.base import UnsupportedBackboneError, check_streams, chosen_steps, is_chosen
from smarttrim_mm.policies.merging import free_rows, merge_of_rows
from smarttrim_mm.structures import Layout, Merge


def dropped_share(keep_ratio: float) -> float:
    """What is dropped where a share is kept.

    Raises:
        ValueError: If ``keep_ratio`` is outside [0.001, 1].
    """
    if not 0.001 <= keep_ratio <= 1:
        raise ValueError(f"keep_ratio is {keep_ratio}; expected a share in [0.001, 1], 1 keeps every token")
    return 1 - keep_ratio


def encoder_layers(
    steps: Sequence[LayerStep],
    streams: Sequence[str],
    layers: Mapping[str, Sequence[int]] | None,
    default: Callable[[int], Iterable[int]],
) -> dict[str, Sequence[int]]:
    """Layers by stage: those that a config chooses, else the default ones of encoders of chosen streams, and none of others.

    Args:
        steps: The layers of the backbone.
        streams: Streams that a config names.
        layers: Per stage, the layer indices that it chooses, or None.
        default: Layer indices in an encoder of so many layers.
    """
    stages: dict[str, list[LayerStep]] = {}
    for step in steps:
        stages.setdefault(step.stage, []).append(step)
    chosen: dict[str, Sequence[int]] = {}
    for stage, own in stages.items():
        alone = all(len(step.streams()) == 1 and is_chosen(next(iter(step.streams())), streams) for step in own)
        chosen[stage] = sorted(set(default(len(own)))) if alone else ()
    return {**chosen, **(layers or {})}


def at_parts(parts: int) -> Callable[[int], list[int]]:
    """Layer indices that divide an encoder into equal parts: of 12 layers in 4 parts 3, 6 and 9."""
    return lambda count: [count * part // parts for part in range(1, parts)]


def readers(
    steps: Sequence[LayerStep], streams: Sequence[str], layers: Mapping[str, Sequence[int]] | None
) -> dict[str, dict[str, tuple[AttentionView, ...]]]:
    """The attentions that read chosen streams in chosen layers, by step and by stream, in the order of execution.

    Args:
        steps: The layers of the backbone.
        streams: Streams that a config names.
        layers: Per stage, the layer indices that it chooses; stages left out: every layer.

    Raises:
        ValueError: If a stream, stage or layer is unknown.
        UnsupportedBackboneError: If none of these streams is read there.
    """
    streams = check_streams(steps, streams)
    chosen = chosen_steps(steps, layers, "layers")
    found: dict[str, dict[str, tuple[AttentionView, ...]]] = {}
    for step in steps:
        views = [view for layer in step.layers.values() for view in layer.attentions]
        for name in step.streams() if step.name in chosen else ():
            reading = tuple(view for view in views if view.reads == name)
            if reading and is_chosen(name, streams):
                found.setdefault(step.name, {})[name] = reading
    if not found:
        raise UnsupportedBackboneError(
            f"streams is {list(streams)} and layers {layers}: no attention of these layers of this backbone reads such a "
            "stream, and the policy ranks tokens by attention. Choose other layers or streams"
        )
    return found


def keep_best(layout: Layout, scores: Tensor, dropped: Tensor | float) -> Tensor:
    """Which tokens stay if, of those that are not protected, a share is dropped, the worst by score.

    Args:
        layout: How the tokens lie.
        scores: Of each, [B, N] or [S].
        dropped: Share, in [0, 1).

    Returns:
        bool, shaped like ``scores``.
    """
    rows, counts = _ranking(layout, scores, dropped)
    return layout.from_rows(keep_top(rows, counts)) | layout.protected


def fuse_worst(layout: Layout, scores: Tensor, dropped: Tensor | float) -> Merge:
    """Fuses into one what :func:`keep_best` drops, by a mean weighted by score; arguments as there."""
    rows, counts = _ranking(layout, scores, dropped)
    # a weight of 0, to which attention may underflow, would leave a mean of nothing
    return merge_of_rows(layout, fuse_rest(rows, counts), scores.float().clamp(min=1e-12))


def _ranking(layout: Layout, scores: Tensor, dropped: Tensor | float) -> tuple[Tensor, Tensor]:
    """Scores of what may be dropped, a row an instance, -inf elsewhere, and how many of them stay, long [B]."""
    free = free_rows(layout)
    rows = layout.to_rows(scores.detach().float(), 0.0).masked_fill(~free, -torch.inf)
    return rows, kept_counts(free.sum(1), dropped)
