"""The cost sheet: where a model's multiply-adds are, what a budget leaves of them, and how far each place could be cut.

Everything follows from the record of one dense pass with random weights. These are counts, not times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from smarttrim_mm.engine.calibration import bisect
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.record import AheadRecord, CountsPolicies, PlannedCost, StepRecord, TrimRecord
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.policies.dense import Dense
from smarttrim_mm.utils.flop_count import count_multiply_adds
from smarttrim_mm.utils.random_inputs import random_inputs

TEXT_LENGTH = 50
RANKED = (1000, 5000)  # images and texts of Flickr30K's test split

Trims = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Cuts:
    """What may be cut, and what deciding costs; decides nothing itself.

    Attributes:
        streams: By step name, the streams whose tokens may be cut.
        attentions: By step name, the attentions whose heads may be cut.
        decider: Whose compute is counted; None: deciding is free.
        within: By step name, the streams that may be cut between its attentions and its MLP.
        skipped: By step name, the parts of its layers that may be skipped.
    """

    streams: Trims
    attentions: Trims
    decider: CountsPolicies | None = None
    within: Trims = field(default_factory=dict)
    skipped: Trims = field(default_factory=dict)

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the streams and of the attentions that may be cut in this step."""
        return self.streams.get(step.name, frozenset()), self.attentions.get(step.name, frozenset())

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        """What deciding costs in a step, per instance."""
        return 0.0 if self.decider is None else self.decider.multiply_adds(step, counts)

    def reads(self, step: LayerStep) -> frozenset[str]:
        """Streams outside the step that whoever decides wants the guide tokens of."""
        cuts = any((*self.trims(step), self.reduces(step), self.skips(step)))
        return self.decider.reads(step) if self.decider is not None and cuts else frozenset()

    def reduces(self, step: LayerStep) -> frozenset[str]:
        """Names of the streams that may be cut between attention and MLP of this step."""
        return self.within.get(step.name, frozenset())

    def skips(self, step: LayerStep) -> frozenset[str]:
        """Parts of the layers of this step that may be skipped."""
        return self.skipped.get(step.name, frozenset())

    def by(self, policy: CountsPolicies, steps: Sequence[LayerStep]) -> "Cuts":
        """The part of it that a policy may cut, at the policy's cost."""
        streams = {step.name: self.trims(step)[0] & policy.trims(step)[0] for step in steps}
        attentions = {step.name: self.trims(step)[1] & policy.trims(step)[1] for step in steps}
        within = {step.name: self.trims(step)[0] & policy.reduces(step) for step in steps}
        skipped = {
            step.name: frozenset(part for part in policy.skips(step) if part.rpartition(".")[0] in self.trims(step)[0])
            for step in steps
        }
        return Cuts(streams, attentions, policy, within, skipped)

    def __bool__(self) -> bool:
        return any(any(each.values()) for each in (self.streams, self.attentions, self.within, self.skipped))


@dataclass(frozen=True)
class Part:
    """A stage with what belongs to it outside its layers, the head, or the policy.

    Attributes:
        name: Of the stage; ``'head'``; ``'policy'``.
        dense: Multiply-adds of the dense model.
        if_free: Speed-up of the whole model if the part cost nothing.
        left: Multiply-adds at the budget; None: no budget.
    """

    name: str
    dense: float
    if_free: float
    left: float | None


@dataclass(frozen=True)
class Layer:
    """A layer, or a linear map outside the layers.

    Attributes:
        name: ``'image.3'``, ``'image.patches'``.
        tokens: Per stream, of one instance.
        heads: Of all its attentions.
        dense: Multiply-adds of the dense model.
        best_from_here: Speed-up of the whole model if from here on its streams had protected tokens only; None: no layer.
        left_tokens: At the budget; None here and below: no budget.
        left_heads: Likewise.
        left: Multiply-adds at the budget.
        policy: Multiply-adds of the policy's decision before it, at the budget.
    """

    name: str
    tokens: dict[str, float]
    heads: int
    dense: float
    best_from_here: float | None
    left_tokens: dict[str, float] | None = None
    left_heads: float | None = None
    left: float | None = None
    policy: float | None = None


@dataclass(frozen=True)
class Place:
    """Somewhere to cut.

    Attributes:
        name: In words.
        best: Speed-up of the whole model if it alone were cut to its least at every layer, decided for free.
        best_of_policy: Likewise as far as the config's policy may cut there, its own compute counted, and with the parts of
            layers skipped that it may skip; None: it may not.
    """

    name: str
    best: float
    best_of_policy: float | None


@dataclass(frozen=True)
class Budget:
    """A plan for a speed-up.

    Attributes:
        speedup: Of the whole model.
        share: What each place keeps, of its tokens that are not protected and of its heads.
        cuts: Who cuts: the config's policy; ``'any policy'``, everywhere and for free, where that cuts nothing.
    """

    speedup: float
    share: float
    cuts: str


@dataclass(frozen=True)
class Ranking:
    """Multiply-adds of one pair where every image is ranked against every text.

    Attributes:
        images: Number of images.
        texts: Number of texts.
        image: What one pair spends on what depends on its image alone, in the dense model; likewise ``text`` and ``pair``.
        text: On what depends on its text alone.
        pair: On the rest.
        dense: Every pair on its own, and with each image and each text encoded once.
        left: Likewise at the budget; None: no budget.
    """

    images: int
    texts: int
    image: float
    text: float
    pair: float
    dense: tuple[float, float]
    left: tuple[float, float] | None


@dataclass(frozen=True)
class CostSheet:
    """Multiply-adds per sample, and ratios of them.

    Attributes:
        backbone: Its type.
        policy: Likewise.
        image_size: Side of an image.
        text_length: Tokens of the text, begin and end included; 0 of a model without texts.
        pairs_per_sample: Image-text pairs that one answer is about.
        dense: Of the whole dense model.
        counted: Of the same forward, by ``torch.utils.flop_counter``.
        policy_dense: The policy's own, where it keeps everything.
        best_of_policy: Speed-up if the policy cut everything that it may; None: it cuts nothing.
        budget: The plan.
        parts: In the order of execution; a policy that cuts comes last.
        layers: By part, each in the order of execution.
        places: Where to cut.
        ranking: Of pairs; None: not asked for.
    """

    backbone: str
    policy: str
    image_size: int
    text_length: int
    pairs_per_sample: int
    dense: float
    counted: float
    policy_dense: float
    best_of_policy: float | None
    budget: Budget | None
    parts: tuple[Part, ...]
    layers: tuple[Layer, ...]
    places: tuple[Place, ...]
    ranking: Ranking | None

    @property
    def sizes(self) -> str:
        """The inputs in words."""
        return f"{self.image_size} px" + (f", {self.text_length} text tokens" if self.text_length else "")


def cost_sheet(
    model: TrimmedVLM,
    *,
    text_length: int | None = None,
    speedup: float | None = None,
    ranked: tuple[int, int] | None = None,
) -> CostSheet:
    """Counts a model's multiply-adds and plans a budget.

    Args:
        model: The model, in evaluation mode; its weights play no part.
        text_length: Tokens of the text, begin and end included; None: 50, or the longest that the model takes.
        speedup: Of the plan; None: that of the model's budget, if it has one.
        ranked: Numbers of images and of texts that are ranked; None: those of Flickr30K, for a model with a single score.

    Raises:
        ValueError: If the speed-up is below 1 or out of reach, the text too short or too long, a number below 1, or pairs
            are to be ranked that belong to samples of several.
    """
    shape = model.backbone.input_format
    length = check_length(shape, text_length)
    if speedup is None:
        speedup = getattr(model.budget, "speedup", None)
    if speedup is not None and not speedup >= 1:
        raise ValueError(f"speedup is {speedup}; expected a number >= 1, such as 2.0 for half of the dense multiply-adds")
    if ranked is None and shape["num_classes"] == 1:
        ranked = RANKED
    if ranked is not None:
        _check_ranked(shape, ranked)
    record, counted = trace_dense(model, random_inputs(shape, [length]))
    steps = [entry.step for entry in record.steps]
    places = places_of(steps)
    trims = any(model.policy.may_cut(step) for step in steps)
    cuts: CountsPolicies = model.policy if trims else places["everything"]
    budget = None
    if speedup is not None:
        name = type(model.policy).__name__ if trims else "any policy"
        budget = Budget(speedup, solve_share(record, cuts, speedup, name), name)
    whole = record.plan(Cuts({}, {}), 1.0)
    left = None if budget is None else record.plan(cuts, budget.share)
    return CostSheet(
        backbone=type(model.backbone).__name__,
        policy=type(model.policy).__name__,
        image_size=shape["image_size"],
        text_length=length,
        pairs_per_sample=record.pairs_per_sample,
        dense=_total(whole),
        counted=float(counted),
        policy_dense=sum(float(planned.policy) for planned in record.plan(model.policy, 1.0)),
        best_of_policy=_best(record, model.policy) if trims else None,
        budget=budget,
        parts=tuple(_parts(whole, left, trims)),
        layers=tuple(_layers(record, whole, left)),
        places=tuple(_place(record, name, cut, cut.by(model.policy, steps)) for name, cut in places.items()),
        ranking=None if ranked is None else rank_costs(model, length, ranked, cuts, budget),
    )


@torch.inference_mode()
def trace_dense(model: TrimmedVLM, inputs: VLMInputs) -> tuple[TrimRecord, int]:
    """Runs the dense model, packed.

    Args:
        model: The model.
        inputs: One sample.

    Returns:
        The record, with what would be read ahead for the model's policy, and the multiply-adds that torch itself counted of
        the dense model alone.
    """
    inputs = inputs.to(next(model.parameters()).device)
    (_, record), counted = count_multiply_adds(lambda: model.trace(inputs, policy=model.dense))
    if any(model.policy.reads(entry.step) for entry in record.steps):
        record = model.trace(inputs, policy=_Reader(model.policy))[1]
    return record, counted


class _Reader(Dense):
    """Keeps everything, but has read ahead what another policy would read."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(steps=())
        self.policy = policy

    def reads(self, step: LayerStep) -> frozenset[str]:
        return self.policy.reads(step)


def places_of(steps: Sequence[LayerStep]) -> dict[str, Cuts]:
    """Where a model can be cut, whatever its policy: by stage tokens, heads and both, then all.

    Tokens that a stage drops stay dropped: cutting a stream from a stage on cuts it in the later ones.

    Args:
        steps: The layers, in the order of execution.
    """
    heads = {step.name: frozenset(view.name for layer in step.layers.values() for view in layer.attentions) for step in steps}
    places: dict[str, Cuts] = {}
    for stage in dict.fromkeys(step.stage for step in steps):
        first = next(i for i, step in enumerate(steps) if step.stage == stage)
        streams = sorted({name for step in steps if step.stage == stage for name in step.streams()})
        for stream in streams:
            places[f"{stream} tokens, from {stage} on"] = Cuts(_tokens_from(steps, first, {stream}), {})
        inside = {step.name: heads[step.name] for step in steps if step.stage == stage}
        places[f"heads of {stage}"] = Cuts({}, inside)
        places[f"tokens and heads of {stage}"] = Cuts(_tokens_from(steps, first, set(streams)), inside)
    tokens = {step.name: frozenset(step.streams()) for step in steps}
    return {**places, "all tokens": Cuts(tokens, {}), "all heads": Cuts({}, heads), "everything": Cuts(tokens, heads)}


def solve_share(record: TrimRecord, cuts: CountsPolicies, speedup: float, name: str = "the policy") -> float:
    """The share that every place has to keep for a speed-up of the whole model.

    Args:
        record: Of a dense pass.
        cuts: Says what may be cut, and what deciding costs.
        speedup: Wanted.
        name: Who cuts, for messages.

    Raises:
        ValueError: If it is out of reach; the message says what can be reached.
    """
    most = _best(record, cuts)
    if speedup > most:
        raise ValueError(
            f"speedup is {speedup}, but with texts of this length {name} reaches at most {most:.2f} (only protected tokens and "
            "none of the heads that may be cut left, the policy's own compute counted). Ask for less, or let the policy trim "
            "more layers and streams"
        )
    dense = _total(record.plan(Cuts({}, {}), 1.0))
    return bisect(
        lambda share: dense / _total(record.plan(cuts, share)), 1.0, 0.0, most, target=speedup, tolerance=1e-6, max_steps=60
    )


def rank_costs(model: TrimmedVLM, length: int, ranked: tuple[int, int], cuts: CountsPolicies, budget: Budget | None) -> Ranking:
    """What a pair costs where every image is ranked against every text.

    What can be encoded once is read from a batch of one image with two texts: an entry of the record that ran once for both is
    the image's, one that ran for each text is the text's, and the others belong to the pair.

    Args:
        model: The model.
        length: Tokens of the texts.
        ranked: Numbers of images and of texts.
        cuts: What the budget cuts.
        budget: The plan, or None.
    """
    images, texts = ranked
    both = random_inputs(model.backbone.input_format, [length, length], [0, 0])
    record, _ = trace_dense(model, replace(both, text_index=torch.arange(2), text_ids=torch.arange(2) + 500))

    def split(plan: Sequence[PlannedCost]) -> tuple[float, float, float]:
        image, text, pair = 0.0, 0.0, 0.0
        for planned in plan:
            cost = float(planned.own[0] + planned.policy[0])
            rows = None if planned.entry.rows is None else planned.entry.rows.tolist()
            if rows == [0, 0]:
                image += cost
            elif rows == [0, 1]:
                text += cost
            else:
                pair += cost
        return image, text, pair

    def costs(image: float, text: float, pair: float) -> tuple[float, float]:
        return image + text + pair, image / texts + text / images + pair

    dense = split(record.plan(Cuts({}, {}), 1.0))
    left = None if budget is None else costs(*split(record.plan(cuts, budget.share)))
    return Ranking(images, texts, *dense, costs(*dense), left)


def check_length(shape: Mapping[str, int], length: int | None) -> int:
    """Tokens of the texts, begin and end included; None: 50, or the longest that the model takes. 0 of a model without texts.

    Args:
        shape: The backbone's ``input_format``.
        length: Wanted.

    Raises:
        ValueError: If the model takes no texts of this length.
    """
    if "vocab_size" not in shape:
        if length:
            raise ValueError(f"text length is {length}, and this model reads no texts; leave it out")
        return 0
    longest = shape.get("max_text_length")
    if length is None:
        return TEXT_LENGTH if longest is None else min(TEXT_LENGTH, longest)
    if length < 2 or (longest is not None and length > longest):
        limits = "at least 2" if longest is None else f"2 to {longest}, the positions of this model's text encoder"
        raise ValueError(f"text length is {length}; expected {limits}, begin and end included")
    return length


def _check_ranked(shape: Mapping[str, int], ranked: tuple[int, int]) -> None:
    for name, number in zip(("images", "texts"), ranked, strict=True):
        if number < 1:
            raise ValueError(f"number of {name} to rank is {number}; expected at least 1")
    if "vocab_size" not in shape:
        raise ValueError("this model reads no texts that images could be ranked against; leave the numbers to rank out")
    if shape.get("images_per_text", 1) > 1:
        raise ValueError(f"a sample of this model has {shape['images_per_text']} image-text pairs; ranking is of single pairs")


def _tokens_from(steps: Sequence[LayerStep], first: int, streams: set[str]) -> Trims:
    return {step.name: frozenset(streams & step.streams().keys()) for step in steps[first:] if streams & step.streams().keys()}


def _total(plan: Sequence[PlannedCost]) -> float:
    return sum(float(planned.own + planned.policy) for planned in plan)


def _best(record: TrimRecord, cuts: CountsPolicies) -> float:
    return _total(record.plan(Cuts({}, {}), 1.0)) / _total(record.plan(cuts, 0.0))


def _place(record: TrimRecord, name: str, cuts: Cuts, of_policy: Cuts) -> Place:
    return Place(name, _best(record, cuts), _best(record, of_policy) if of_policy else None)


def _name(planned: PlannedCost) -> str:
    return planned.entry.step.name if isinstance(planned.entry, StepRecord) else planned.entry.name


def _part(planned: PlannedCost) -> str:
    return _name(planned).rpartition(".")[0]


def _parts(whole: Sequence[PlannedCost], left: Sequence[PlannedCost] | None, trims: bool) -> list[Part]:
    def cost(plan: Sequence[PlannedCost], part: str) -> float:
        return sum(float(planned.own) for planned in plan if _part(planned) == part)

    total = _total(whole)
    parts = []
    for part in dict.fromkeys(_part(planned) for planned in whole if not isinstance(planned.entry, AheadRecord)):
        dense = cost(whole, part)
        free = total / (total - dense) if dense < total else float("inf")
        parts.append(Part(part, dense, free, None if left is None else cost(left, part)))
    if trims:
        parts.append(Part("policy", 0.0, 1.0, None if left is None else sum(float(planned.policy) for planned in left)))
    return parts


def _layers(record: TrimRecord, whole: Sequence[PlannedCost], left: Sequence[PlannedCost] | None) -> list[Layer]:
    steps = [entry.step for entry in record.steps]
    layers = []
    for number, planned in enumerate(whole):
        entry, heads, best = planned.entry, 0, None
        if isinstance(entry, StepRecord):
            heads = sum(view.heads for layer in entry.step.layers.values() for view in layer.attentions)
            best = _best(record, Cuts(_tokens_from(steps, steps.index(entry.step), set(entry.step.streams())), {}))
        layer = Layer(_name(planned), _means(planned), heads, float(planned.own), best)
        if left is not None:
            at = left[number]
            off = 0.0
            if isinstance(entry, StepRecord):
                views = {view.name: view.heads for part in entry.step.layers.values() for view in part.attentions}
                off = sum(views[name] - float(on) for name, on in at.heads.items())
            layer = replace(layer, left_tokens=_means(at), left_heads=heads - off, left=float(at.own), policy=float(at.policy))
        layers.append(layer)
    parts = list(dict.fromkeys(_part(planned) for planned in whole))
    return sorted(layers, key=lambda layer: parts.index(layer.name.rpartition(".")[0]))


def _means(planned: PlannedCost) -> dict[str, float]:
    return {stream: float(tokens.mean()) for stream, tokens in planned.tokens.items()}
