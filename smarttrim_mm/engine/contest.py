"""What meets in a benchmark: batches of one size, and policies as they are or with decisions imposed for a speed-up."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader

from smarttrim_mm.engine.contenders import Contender, policy_contenders
from smarttrim_mm.engine.cost_sheet import check_length
from smarttrim_mm.engine.drawing import draw_pairs
from smarttrim_mm.engine.imposing import impose, random_rounds
from smarttrim_mm.engine.precision import Precision
from smarttrim_mm.engine.rivals import rival_contenders
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.policies.imposed import ImposedKeep


@dataclass(frozen=True)
class Contest:
    """One batch size.

    Attributes:
        first: The first batch.
        batches: All of them, the warm-up's first.
        contenders: Policies, and other executions, by name.
        text_length: Most tokens of a text; None: not known before.
    """

    first: VLMInputs
    batches: Iterator[VLMInputs]
    contenders: Mapping[str, Contender]
    text_length: int | None = None


@dataclass(frozen=True)
class RandomBatches:
    """Random batches for a model.

    Attributes:
        model: Gives shapes and the device.
        lengths: Tokens of texts: the least and the most.
        precision: Numbers of the images.
        seed: Of everything.
    """

    model: TrimmedVLM
    lengths: tuple[int, int]
    precision: Precision
    seed: int

    @classmethod
    def of(cls, model: TrimmedVLM, args: argparse.Namespace, precision: Precision) -> RandomBatches:
        """What the options ask for."""
        shape = model.backbone.input_format
        if args.text_lengths is None:
            length = check_length(shape, args.text_length)
            return cls(model, (length, length), precision, args.seed)
        least, most = (check_length(shape, length) for length in args.text_lengths)
        return cls(model, (least, most), precision, args.seed)

    def draw(self, size: int, rounds: int, imposed: Iterable[ImposedKeep] = ()) -> Iterator[VLMInputs]:
        """Batches of a size; what will be imposed on them is drawn before, that nobody is timed at it."""
        imposed = list(imposed)
        for inputs in self._draw(self.lengths, size, rounds):
            each = inputs.pairs_per_sample  # several images of a sample may be streams of their own
            ids = [inputs.sample_ids, inputs.image_ids, *(inputs.sample_ids[first::each] for first in range(each))]
            for policy in imposed:
                policy.prepare(*ids, *([] if inputs.text_ids is None else [inputs.text_ids]))
            yield inputs

    def impose(
        self, policy: Policy, speedups: Sequence[float], *, size: int, rounds: range, spread: float
    ) -> dict[float, ImposedKeep]:
        """The policy overruled, by speed-up, on some of the rounds of a size."""
        mean = sum(self.lengths) // 2
        first = next(self._draw((mean, mean), size, 1))
        return impose(self.model, first, speedups, policy=policy, rounds=rounds, spread=spread, seed=self.seed)

    def _draw(self, lengths: tuple[int, int], size: int, rounds: int) -> Iterator[VLMInputs]:
        shape, device = self.model.backbone.input_format, next(self.model.parameters()).device
        drawn = random_rounds(shape, text_length=lengths, batch_size=size, rounds=rounds, seed=self.seed)
        return (self.precision.inputs(inputs.to(device)) for inputs in drawn)


def on_data(
    model: TrimmedVLM, loader: DataLoader, policies: Mapping[str, Policy], precision: Precision, args: argparse.Namespace
) -> Callable[[int], Contest]:
    """Contests on batches of the config's data, under policies as they are."""

    def draw(size: int, rounds: int) -> Iterator[VLMInputs]:
        drawn = draw_pairs(model, loader, batch_size=size, rounds=rounds, seed=args.seed)
        return (precision.inputs(inputs) for inputs in drawn)

    def contest(size: int) -> Contest:
        rounds = args.warmup + args.rounds
        return Contest(next(draw(size, 1)), draw(size, rounds), policy_contenders(model, policies))

    return contest


def on_random(batches: RandomBatches, policies: Mapping[str, Policy], args: argparse.Namespace) -> Callable[[int], Contest]:
    """Contests on random batches, under policies as they are, or at the speed-ups of the options.

    Rivals are held against the first of the policies.
    """
    rounds = range(args.warmup, args.warmup + args.rounds)

    def contest(size: int) -> Contest:
        first = next(batches.draw(size, 1))
        if not args.speedups:
            every = batches.draw(size, rounds.stop)
            return Contest(first, every, policy_contenders(batches.model, policies), batches.lengths[1])
        found: dict[str, Contender] = {}
        drawn: list[ImposedKeep] = []
        for number, (name, policy) in enumerate(policies.items()):
            imposed = batches.impose(policy, args.speedups, size=size, rounds=rounds, spread=args.spread)
            drawn += imposed.values()
            found |= policy_contenders(batches.model, {f"{name} at {speedup:g}x": one for speedup, one in imposed.items()})
            if args.rivals and number == 0:
                for speedup, one in imposed.items():
                    found |= _rivals(batches.model, one, first, speedup)
        return Contest(first, batches.draw(size, rounds.stop, drawn), found, batches.lengths[1])

    return contest


def _rivals(model: TrimmedVLM, imposed: ImposedKeep, first: VLMInputs, speedup: float) -> dict[str, Contender]:
    def say(name: str, reason: Exception) -> None:
        print(f"{name} at {speedup:g}x: left out: {reason}")

    found = rival_contenders(model, imposed, first, speedup, on_skip=say)
    return {f"{name} at {speedup:g}x": run for name, run in found.items()}
