"""Other ways to run the same model with about the same compute, for a benchmark beside the packed execution.

Two have the same decisions as a policy and the same outputs: masks alone, which save nothing, and padding to the longest. Two
leave the same number of tokens of every instance, which is easy to batch: dropped as in DynamicViT, or merged as in ToMe, in
the image encoder alone, by as much as gives the whole model the wanted mean multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from smarttrim_mm.engine.calibration import bisect
from smarttrim_mm.engine.fixed_count import FixedCount, FixedCountExecution
from smarttrim_mm.engine.token_merging import MergingExecution, TokenMerging
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.compacted import CompactedExecution
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.record import PlansCuts, TrimRecord
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.policies.imposed import ImposedKeep

MASK_ONLY, PAD_TO_LONGEST = "mask only", "pad to longest"
FIXED_COUNT, MERGING = "fixed count, DynamicViT-style", "fixed count, ToMe-style"
TOLERANCE = 0.002
_MAX_STEPS = 16

Contender = Callable[[VLMInputs], tuple[Tensor, TrimRecord | None]]


class OutOfReach(ValueError):
    """A rival cannot be run on this model, or not at this speed-up; the message says why."""


def rival_contenders(
    model: TrimmedVLM,
    imposed: ImposedKeep,
    first: VLMInputs,
    speedup: float,
    *,
    on_skip: Callable[[str, OutOfReach], None] | None = None,
) -> dict[str, Contender]:
    """Executions of a model that are compared with the packed one.

    Args:
        model: The model, in evaluation mode.
        imposed: The policy that the packed execution runs under.
        first: The first of the batches; compute is counted on it.
        speedup: Dense over mean multiply-adds of the whole model that the policy was imposed for.
        on_skip: Told of the name of a rival that cannot be had, and of the reason; None: that is an error.

    Returns:
        By name, functions of a batch that give the logits and the record of what was kept.

    Raises:
        OutOfReach: If a rival cannot be had, without ``on_skip``.
    """
    found: dict[str, Contender] = {
        MASK_ONLY: lambda inputs: model.trace(inputs, "masked", imposed),
        PAD_TO_LONGEST: partial(pad_to_longest, model, imposed),
    }
    with torch.inference_mode():
        record = model.trace(first.to(next(model.parameters()).device), policy=model.dense)[1]
    rivals: dict[str, Callable[[], Contender]] = {
        FIXED_COUNT: lambda: partial(run_fixed_count, model, fixed_count_at(model, record, speedup)),
        MERGING: lambda: partial(run_merging, model, merging_at(model, record, speedup)),
    }
    for name, make in rivals.items():
        try:
            found[name] = make()
        except OutOfReach as reason:
            if on_skip is None:
                raise
            on_skip(name, reason)
    return found


def pad_to_longest(model: TrimmedVLM, policy: Policy, inputs: VLMInputs) -> tuple[Tensor, TrimRecord]:
    """Runs a policy in dense shapes as wide as the instance that keeps most, see
    :class:`~smarttrim_mm.layers.compacted.CompactedLayout`.

    Args:
        model: The model.
        policy: Decides.
        inputs: The batch.

    Returns:
        Logits [G, C] and the record of what was kept.
    """
    execution = CompactedExecution(
        policy,
        sample_ids=inputs.sample_ids,
        kind="masked",
        pairs_per_sample=inputs.pairs_per_sample,
        token_wise=model.token_wise,
    )
    return _run(model, inputs, execution)


def run_fixed_count(model: TrimmedVLM, fixed: FixedCount, inputs: VLMInputs) -> tuple[Tensor, TrimRecord]:
    """Runs the model under :class:`~smarttrim_mm.engine.fixed_count.FixedCount`; arguments as :func:`pad_to_longest`."""
    return _run(
        model,
        inputs,
        FixedCountExecution(
            fixed, sample_ids=inputs.sample_ids, pairs_per_sample=inputs.pairs_per_sample, token_wise=model.token_wise
        ),
    )


def run_merging(model: TrimmedVLM, merging: TokenMerging, inputs: VLMInputs) -> tuple[Tensor, TrimRecord]:
    """Runs the model under :class:`~smarttrim_mm.engine.token_merging.TokenMerging`; arguments as :func:`pad_to_longest`."""
    return _run(
        model,
        inputs,
        MergingExecution(
            merging, sample_ids=inputs.sample_ids, pairs_per_sample=inputs.pairs_per_sample, token_wise=model.token_wise
        ),
    )


def fixed_count_at(model: TrimmedVLM, record: TrimRecord, speedup: float) -> FixedCount:
    """The ratio at which DynamicViT-style dropping gives the model a mean speed-up.

    Args:
        model: The model.
        record: Of a dense pass.
        speedup: Dense over mean multiply-adds of the whole model.

    Raises:
        OutOfReach: If even the class token alone is too much.
    """
    whole = FixedCount.of(_image_steps(model, FIXED_COUNT))

    def reached(rho: float) -> float:
        fixed = whole.at(rho)
        return _planned_speedup(record, fixed, fixed.ratio)

    return whole.at(_solve(reached, 1.0, 0.0, speedup, FIXED_COUNT))


def merging_at(model: TrimmedVLM, record: TrimRecord, speedup: float) -> TokenMerging:
    """How many tokens a layer must merge for a mean speed-up; arguments as :func:`fixed_count_at`.

    Raises:
        OutOfReach: If half of the tokens in every layer is too little, or the image encoder is no ViT.
    """
    steps = _image_steps(model, MERGING)
    tokens = next(layout.size for entry in record.steps if entry.step.name == steps[0].name for layout in entry.tokens.values())

    def at(per_layer: float) -> TokenMerging:
        try:
            return TokenMerging(steps=steps, tokens=tokens, per_layer=per_layer)
        except ValueError as error:
            raise OutOfReach(f"{MERGING}: {error}") from error

    def reached(per_layer: float) -> float:
        merging = at(per_layer)
        return _planned_speedup(record, merging, merging)

    return at(_solve(reached, 0.0, tokens / 2, speedup, MERGING))


def _run(model: TrimmedVLM, inputs: VLMInputs, execution: Execution) -> tuple[Tensor, TrimRecord]:
    logits = model.backbone(inputs, execution)
    return logits, execution.record


def _image_steps(model: TrimmedVLM, name: str) -> list[LayerStep]:
    stages: dict[str, list[LayerStep]] = model.backbone.steps
    if "image" not in stages:
        raise OutOfReach(f"{name}: the backbone's stages are {sorted(stages)}; expected 'image', an image encoder to trim")
    return stages["image"]


def _solve(reached: Callable[[float], float], least: float, most: float, speedup: float, name: str) -> float:
    """The setting, between those that leave most and least, at which a speed-up is reached."""
    limit = reached(most)
    if speedup > limit:
        raise OutOfReach(
            f"{name}: speedup is {speedup:g}, but the image encoder's tokens alone bring at most {limit:.2f} here, as texts, "
            "heads, and what stands before the first cut are left whole. Ask for less"
        )
    return bisect(reached, least, most, limit, target=speedup, tolerance=TOLERANCE, max_steps=_MAX_STEPS)


def _planned_speedup(record: TrimRecord, policy: Policy, left: PlansCuts) -> float:
    planned = sum(float((entry.own + entry.policy).double().sum()) for entry in record.plan(policy, left))
    return float(record.dense_multiply_adds().double().sum()) / planned
