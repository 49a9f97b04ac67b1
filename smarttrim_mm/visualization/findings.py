"""Everything that is drawn of a model at one time: gathered, and made into figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.visualization.compute_spread import compute_figure
from smarttrim_mm.visualization.head_map import head_scores_figure, heads_figure
from smarttrim_mm.visualization.keep_scores import has_scores, scores_figure
from smarttrim_mm.visualization.kept_patches import kept_figure
from smarttrim_mm.visualization.survey import Pair, Survey, take_survey
from smarttrim_mm.visualization.traces import PairTrace, trace_pairs

PATCHES, SCORES, HEADS, HEAD_SCORES, COMPUTE = "pruned_patches", "keep_scores", "head_map", "head_scores", "compute"
_EXTREMES = 3


@dataclass(frozen=True)
class Findings:
    """What is drawn.

    Attributes:
        policy: Name of the policy.
        traces: Of the chosen inputs, a trace for each image.
        survey: What many inputs take.
        cheapest: The cheapest of them, a trace for each image of each.
        dearest: The dearest of them, likewise.
    """

    policy: str
    traces: tuple[PairTrace, ...]
    survey: Survey
    cheapest: tuple[tuple[PairTrace, ...], ...]
    dearest: tuple[tuple[PairTrace, ...], ...]


@torch.inference_mode()
def gather(
    model: TrimmedVLM,
    loader: DataLoader,
    choose: Callable[[Survey], Sequence[Pair]],
    max_inputs: int | None = None,
    seed: int = 0,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Findings:
    """Surveys a data set and traces some of its inputs.

    Args:
        model: The model, in evaluation mode.
        loader: Gives the data set and how its items are put together.
        choose: Gives the inputs to draw.
        max_inputs: Size of the survey in image-text pairs, as in :func:`~smarttrim_mm.visualization.survey.take_survey`.
        seed: Of the survey.
        on_batch: Called with the number of inputs of each of its batches.

    Raises:
        ValueError: If the patches of an image do not fill it.
    """
    survey = take_survey(model, loader, max_inputs, seed, on_batch)
    cheapest, dearest = (
        tuple(tuple(trace_pairs(model, loader, *pair)) for pair in pairs) for pairs in survey.extremes(_EXTREMES)
    )
    traces = tuple(trace for pair in choose(survey) for trace in trace_pairs(model, loader, *pair))
    return Findings(type(model.policy).__name__, traces, survey, cheapest, dearest)


def figures_of(findings: Findings) -> dict[str, Figure]:
    """The figures by name; those of heads and scores only if the policy decides on heads, and has scores."""
    policy, survey = findings.policy, findings.survey
    figures = pair_figures(policy, findings.traces, survey)
    figures[COMPUTE] = compute_figure(survey, findings.cheapest, findings.dearest, f"{policy}: compute of each input")
    return figures


def pair_figures(policy: str, traces: Sequence[PairTrace], survey: Survey | None = None) -> dict[str, Figure]:
    """The figures of single inputs by name: what is kept, and by which scores.

    Args:
        policy: Name of the policy.
        traces: The inputs.
        survey: Gives the shares of heads over many inputs; None: only those of these inputs are drawn.
    """
    figures = {PATCHES: kept_figure(traces, f"{policy}: what is left at each layer")}
    if has_scores(traces):
        figures[SCORES] = scores_figure(traces, f"{policy}: why it stays")
    title = f"{policy}: which heads run"
    if survey is not None and survey.heads:
        figures[HEADS] = heads_figure(traces, survey.heads, len(survey.pairs), title)
    elif survey is None and any(trace.heads for trace in traces):
        figures[HEADS] = heads_figure(traces, title=title)
    if any(trace.scores.heads for trace in traces):
        figures[HEAD_SCORES] = head_scores_figure(traces, f"{policy}: why heads run")
    return figures
