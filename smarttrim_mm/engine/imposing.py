"""What a benchmark without data or training needs: random rounds, random answers, and decisions imposed for a speed-up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from smarttrim_mm.engine.calibration import bisect
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.record import PlansCuts, TrimRecord
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.policies.imposed import ImposedKeep
from smarttrim_mm.utils.random_inputs import random_inputs

SPREAD = 0.1
TOLERANCE = 0.002
_MAX_STEPS = 16
_ANSWER_TOKENS = (3, 5)  # begin and end included
_BERT = 30522  # ids of its vocabulary
_CLS, _SEP = 101, 102


def random_rounds(
    shape: Mapping[str, int], *, text_length: int | tuple[int, int], batch_size: int, rounds: int, seed: int = 0
) -> Iterator[VLMInputs]:
    """Batches of random images and texts, each image and text a new one.

    A pair's image has the identity of its pair, and its text that of its sample's first pair, so that whatever is drawn by
    identity is one draw a pair. Identities count on from batch to batch.

    Args:
        shape: The backbone's ``input_format``.
        text_length: Tokens of each text, begin and end included; or the least and the most, any between them as likely.
        batch_size: Samples of a batch.
        rounds: Number of batches.
        seed: Of everything.
    """
    least, most = (text_length, text_length) if isinstance(text_length, int) else text_length
    generator = torch.Generator().manual_seed(seed)
    for number in range(rounds):
        lengths = torch.randint(least, most + 1, (batch_size,), generator=generator).tolist()
        inputs = random_inputs(shape, lengths, seed=1_000_003 * seed + number)
        pairs = len(inputs.sample_ids)
        ids = torch.arange(pairs) + number * pairs
        texts = None if inputs.text_ids is None else ids[:: inputs.pairs_per_sample]
        yield replace(inputs, image_ids=ids, sample_ids=ids, text_ids=texts)


def random_answers(count: int, backbone: Mapping[str, Any], seed: int = 0) -> list[list[int]]:
    """Different answers of 3 to 5 random tokens, begin and end included, for a model that ranks a list of them.

    Args:
        count: Number of answers.
        backbone: Config of the backbone; its ``text.vocab_size`` limits the ids.
        seed: Of the draw.

    Raises:
        ValueError: If the backbone takes no answers, or the vocabulary is too small for so many.
    """
    if "answers" not in backbone:
        raise ValueError(
            f"--answers is {count}, but model.backbone.answers is not set: this model ranks no answers; leave it out"
        )
    limit = int((backbone.get("text") or {}).get("vocab_size", _BERT)) - 2  # BLIP adds two ids of its own
    words = torch.tensor([word for word in range(1, limit) if word not in (_CLS, _SEP)])
    if count > len(words):
        raise ValueError(f"--answers is {count}; expected at most {len(words)} with this vocabulary")
    generator = torch.Generator().manual_seed(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        low, high = _ANSWER_TOKENS
        length = int(torch.randint(low - 2, high - 1, (1,), generator=generator))
        drawn = words[torch.randint(len(words), (length,), generator=generator)]
        found[_CLS, *drawn.tolist(), _SEP] = None
    return [list(answer) for answer in found]


@torch.inference_mode()
def impose(
    model: TrimmedVLM,
    first: VLMInputs,
    speedups: Sequence[float],
    *,
    policy: Policy | None = None,
    rounds: range = range(1),
    spread: float = SPREAD,
    seed: int = 0,
) -> dict[float, ImposedKeep]:
    """A policy, overruled so that it reaches given speed-ups on random rounds.

    One pass is run; the rest is counted from its record, by the shares that the rounds' instances will draw.

    Args:
        model: The model, in evaluation mode.
        first: The first of :func:`random_rounds`; if texts differ in length, with texts of the mean length.
        speedups: Wanted ratios of dense to decided multiply-adds of the whole model.
        policy: The policy; None: the model's own.
        rounds: Which of the rounds are meant.
        spread: Relative standard deviation of the shares.
        seed: Of the draws.

    Raises:
        ValueError: If a speed-up is out of reach; the message says what can be reached.
    """
    steps = [step for stage in model.backbone.steps.values() for step in stage]
    policy = model.policy if policy is None else policy
    check_imposable(policy, steps)
    start = ImposedKeep.around(policy, steps, spread=spread, seed=seed)
    inputs = first.to(next(model.parameters()).device)
    record = model.trace(inputs, policy=start)[1]
    dense = float(record.dense_multiply_adds().double().sum())
    most = dense / _planned(record, start, 0.0)
    pairs = len(inputs.sample_ids)

    def reached(imposed: ImposedKeep) -> float:
        shifts = (replace(imposed.shares, shift=number * pairs) for number in rounds)
        return dense * len(rounds) / sum(_planned(record, imposed, shares) for shares in shifts)

    found = {}
    for speedup in speedups:
        if speedup > most:
            raise ValueError(
                f"speedup is {speedup:g}, but {type(policy).__name__} reaches at most {most:.2f} here, with nothing but "
                "protected tokens and none of the heads that it may cut left, its own compute counted. Ask for less; or let it "
                "trim more layers and streams; or make smaller what it does not trim, as model.backbone.num_candidates=16 does "
                "of a decoder"
            )
        mean = bisect(
            lambda mean: reached(start.at(mean)),
            start.shares.mean,
            0.0,
            most,
            target=speedup,
            tolerance=TOLERANCE,
            max_steps=_MAX_STEPS,
        )
        found[speedup] = start.at(mean)
    return found


def check_imposable(policy: Policy, steps: Sequence[LayerStep]) -> None:
    """Refuses a policy that does more than leave out tokens and heads before layers.

    Raises:
        ValueError: If it merges or cuts tokens between attention and MLP, or skips parts of layers: what it would merge or skip
            cannot be drawn.
    """
    places = [step.name for step in steps if policy.reduces(step) or policy.skips(step)]
    if places:
        raise ValueError(
            f"policy {type(policy).__name__} decides within {', '.join(places)}, or skips parts of them, which "
            "cannot be imposed. Benchmark a checkpoint that tools/calibrate.py has set to the speed-up, without --speedups"
        )


def _planned(record: TrimRecord, policy: ImposedKeep, share: float | PlansCuts) -> float:
    return sum(float((planned.own + planned.policy).double().sum()) for planned in record.plan(policy, share))
