"""What every policy is: asked before each layer, or between its attention and its MLP, it says which tokens and heads stay.

It never touches a backbone.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from smarttrim_mm.layers.evidence import looking_multiply_adds
from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.layers.views import AttentionView, LayerStep, LayerView, modality
from smarttrim_mm.structures import Decision, Evidence, Layout, Scores, Streams


@dataclass(frozen=True)
class Knob:
    """The one number of a policy that trades compute for accuracy after training; calibration bisects it.

    Attributes:
        name: For messages.
        low: The value that keeps most.
        high: The value that keeps least.
    """

    name: str
    low: float
    high: float


class UnsupportedBackboneError(ValueError):
    """A backbone lacks what a policy works by; raised when the policy is built, with what to do instead."""


class Policy(nn.Module):
    """Base of all policies.

    A subclass overrides :meth:`before_layer`, and :meth:`trims` and :meth:`multiply_adds` to match; or
    :meth:`after_attention`, with :meth:`reduces` and :meth:`looks`; or both. Decisions must not depend on the other instances
    of the batch.

    Args:
        steps: The layers of the backbone, in order of execution: their streams, widths, attentions and heads.

    Attributes:
        knob: The knob's name and range; None: the policy's compute is fixed.
        counts_fixed: Whether the knob alone says how many tokens stay, whatever the weights are. Such a policy is calibrated
            before it is trained too, so that it trains at its budget.
        searches: Whether it looks for what to slice off the backbone, so that a sliced one has no use for it.
    """

    searches = False
    knob: Knob | None = None
    counts_fixed: ClassVar[bool] = False
    knob_value: Tensor

    def __init__(self, *, steps: Sequence[LayerStep]) -> None:
        super().__init__()
        self.progress = 1.0
        if self.knob is not None:
            self.register_buffer("knob_value", torch.tensor(float(self.knob.low)))

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        """Configs by name, without the type, that show what the policy can do; the contract tests run every one."""
        return {"default": {}}

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        """Decides what stays, before any layer of the step runs.

        Args:
            step: The step.
            streams: Its streams, all padded or all packed.
            guides: Guide tokens of ``step.guides``, [B, D] each.

        Returns:
            The decision.
        """
        return Decision()

    def looks(self, step: LayerStep) -> Mapping[str, frozenset[str]]:
        """What :meth:`after_attention` wants to see of the step's attentions, by attention.

        ``'keys'`` (free), ``'guide_row'`` and ``'received'``, see :class:`~smarttrim_mm.structures.Evidence`. What they cost is
        :func:`~smarttrim_mm.layers.evidence.looking_multiply_adds`, to be counted in :meth:`multiply_adds`.
        """
        return {}

    def reduces(self, step: LayerStep) -> frozenset[str]:
        """Names of the streams that :meth:`after_attention` may cut or merge in this step; without any it is not asked."""
        return frozenset()

    def skips(self, step: LayerStep) -> frozenset[str]:
        """Parts of the step that :meth:`before_layer` may have instances skip: ``'<stream>.attention'``, ``'<stream>.mlp'``."""
        return frozenset()

    def after_attention(
        self, step: LayerStep, streams: Streams, evidence: Mapping[str, Evidence], guides: Mapping[str, Tensor]
    ) -> Decision:
        """Decides once more, when all attentions of the step have run and no MLP has.

        Args:
            step: The step.
            streams: Its streams, behind their attentions; those without a layer here as they were read.
            evidence: What :meth:`looks` asked for, by attention.
            guides: As in :meth:`before_layer`.

        Returns:
            The decision, on tokens alone: ``keep`` and ``merge``.
        """
        return Decision()

    def layers_of(self, step: LayerStep) -> Mapping[str, LayerView]:
        """The step's layers as they run under this policy: as they are, unless it searches for what to slice off them."""
        return step.layers

    def scores(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Scores:
        """What :meth:`before_layer` decides by, for pictures; arguments as there. Nothing, unless a policy says so."""
        return Scores()

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the streams and of the attentions that the policy may cut before this step."""
        return frozenset(), frozenset()

    def may_cut(self, step: LayerStep) -> bool:
        """Whether the policy may leave out anything in this step."""
        return any((*self.trims(step), self.reduces(step), self.skips(step)))

    def reads(self, step: LayerStep) -> frozenset[str]:
        """Names of the streams outside the step (``step.guides``) whose guide token the policy wants.

        Where such a stream would run for the policy alone, it runs only if it is wanted.
        """
        return frozenset(step.guides) if self.may_cut(step) else frozenset()

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        """The policy's own compute in a step.

        Args:
            step: The step.
            counts: Tokens of each stream that are there to be scored, [B] each.

        Returns:
            Multiply-adds per instance, [B].
        """
        return 0.0

    def least_tokens(self, stream: str, layout: Layout) -> Tensor:
        """Tokens of a stream that an instance keeps at least where the policy cuts it, fp32 [B]: its protected ones."""
        return layout.floor()

    def losses(self, record: TrimRecord) -> dict[str, Tensor]:
        """Losses of the policy's own in training, by names with ``'loss'``, scalars.

        Args:
            record: What was decided for the batch, with its gradients.
        """
        return {}

    def set_curriculum(self, progress: float) -> None:
        """Moves the policy between keeping everything (0) and its final strength (1)."""
        self.progress = progress

    def get_knob(self) -> float:
        """The knob's value.

        Raises:
            ValueError: If the policy has no knob.
        """
        self._require_knob()
        return float(self.knob_value)

    def set_knob(self, value: float) -> None:
        """Sets the knob; it is saved with the checkpoint.

        Raises:
            ValueError: If the policy has no knob, or the value is outside its range.
        """
        knob = self._require_knob()
        low, high = sorted((knob.low, knob.high))
        if not low <= value <= high:
            raise ValueError(f"{knob.name} of {type(self).__name__} is {value}; expected a number in [{low}, {high}]")
        self.knob_value.fill_(value)

    def _require_knob(self) -> Knob:
        if self.knob is None:
            raise ValueError(f"{type(self).__name__} has no calibration knob: its compute is fixed. Calibrate another policy.")
        return self.knob


class AttentionPolicy(Policy):
    """Base of policies that decide when the attentions of a step have run, by what these show.

    A subclass sets :attr:`attentions` when it is built, and overrides :meth:`after_attention`; :meth:`multiply_adds` too if it
    computes more than what it looks at, and :meth:`looks` or :meth:`reads` if it wants more than here.

    Attributes:
        wants: What is looked at of each attention, see :meth:`Policy.looks`.
        attentions: By step and by the stream that may be cut there, the attention that is looked at.
    """

    wants: ClassVar[frozenset[str]] = frozenset()
    attentions: Mapping[str, Mapping[str, AttentionView]]

    def looks(self, step: LayerStep) -> Mapping[str, frozenset[str]]:
        return {view.name: self.wants for view in self.attentions.get(step.name, {}).values()}

    def reduces(self, step: LayerStep) -> frozenset[str]:
        return frozenset(self.attentions.get(step.name, {}))

    def reads(self, step: LayerStep) -> frozenset[str]:
        return frozenset()

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        return looking_multiply_adds(step, self.looks(step), counts)


def check_streams(steps: Sequence[LayerStep], streams: Sequence[str] | None) -> tuple[str, ...]:
    """The streams that a config names, or, where it names none, image and text as far as the backbone has them.

    Args:
        steps: The layers of the backbone.
        streams: The config's; None: none.

    Raises:
        ValueError: If the backbone has none of one of the named streams.
    """
    known = {kind for step in steps for name in step.streams() for kind in (name, modality(name))}
    if streams is None:
        return tuple(name for name in ("image", "text") if name in known)
    unknown = sorted(set(streams) - known)
    if unknown:
        raise ValueError(f"streams holds {unknown}; this backbone has {sorted(known)}")
    return tuple(streams)


def is_chosen(stream: str, streams: Sequence[str]) -> bool:
    """Whether a stream is among those that a config names, by its name or by its modality."""
    return stream in streams or modality(stream) in streams


def check_layers(argument: str, layers: Any) -> None:
    """Checks that what a config chooses layers by has the form that it should have.

    Args:
        argument: Name of the config's argument, for messages.
        layers: Its value.

    Raises:
        ValueError: If it is neither None nor lists by stage.
    """
    lists = isinstance(layers, Mapping) and all(
        isinstance(each, Sequence) and not isinstance(each, str) for each in layers.values()
    )
    if layers is not None and not lists:
        raise ValueError(
            f"{argument} is {layers!r}; expected lists of layer indices by stage, such as {{'image': [2, 5, 8], 'text': []}}: "
            "an empty list leaves a stage out, a stage that is not named has all its layers chosen"
        )


def chosen_steps(steps: Sequence[LayerStep], layers: Mapping[str, Sequence[int]] | None, argument: str) -> set[str]:
    """Names of the steps that a config chooses.

    Args:
        steps: The layers of the backbone.
        layers: Per stage, the layer indices that are chosen; stages left out: every layer; None: every layer of all.
        argument: Name of the config's argument, for messages.

    Raises:
        ValueError: If it names an unknown stage or layer, or holds no lists.
    """
    check_layers(argument, layers)
    known: dict[str, set[int]] = {}
    for step in steps:
        known.setdefault(step.stage, set()).add(step.index)
    for stage, indices in (layers or {}).items():
        if stage not in known:
            raise ValueError(f"{argument} names stage {stage!r}; this backbone has {sorted(known)}")
        beyond = sorted(set(indices) - known[stage])
        if beyond:
            raise ValueError(f"{argument} names layers {beyond} of stage {stage!r}, which has layers 0 to {max(known[stage])}")
    return {step.name for step in steps if layers is None or step.index in layers.get(step.stage, (step.index,))}


def cuts_so_far(steps: Sequence[LayerStep], streams: Sequence[str], chosen: Container[str]) -> dict[tuple[str, str], int]:
    """How many of the chosen steps have a stream, up to and with each of them; a stream that begins anew is counted anew.

    Args:
        steps: The layers of the backbone, in order of execution.
        streams: Streams that a config names.
        chosen: Names of the steps.

    Returns:
        By the names of step and stream, 1 at the first.
    """
    depth: dict[tuple[str, str], int] = {}
    seen: dict[str, int] = {}
    for step in steps:
        seen = {stream: count for stream, count in seen.items() if stream not in step.anew}
        for stream in step.streams() if step.name in chosen else ():
            if is_chosen(stream, streams):
                # 'image0' goes on where 'image' was
                depth[step.name, stream] = seen[stream] = seen.get(stream, seen.get(modality(stream), 0)) + 1
    return depth


def own_attentions(
    steps: Sequence[LayerStep], streams: Sequence[str] | None, layers: Mapping[str, Sequence[int]] | None
) -> dict[str, dict[str, AttentionView]]:
    """The self-attentions of chosen streams in chosen layers, by step and by stream, in the order of execution.

    Args:
        steps: The layers of the backbone.
        streams: Streams that a config names; None: image and text.
        layers: Per stage, the layer indices that it chooses; stages left out: every layer.

    Raises:
        ValueError: If a stream, stage or layer is unknown.
        UnsupportedBackboneError: If none of these streams has a self-attention there.
    """
    streams = check_streams(steps, streams)
    chosen = chosen_steps(steps, layers, "layers")
    found: dict[str, dict[str, AttentionView]] = {}
    for step in steps:
        for name, layer in step.layers.items() if step.name in chosen else ():
            own = [view for view in layer.attentions if view.reads == name and view.first is None]
            if own and is_chosen(name, streams):
                found.setdefault(step.name, {})[name] = own[0]
    if not found:
        raise UnsupportedBackboneError(
            f"streams is {list(streams)} and layers {layers}: no such stream has a self-attention in these layers of this "
            "backbone, whose keys or weights the policy needs. Choose other layers or streams"
        )
    return found


def text_to_image_attentions(
    steps: Sequence[LayerStep], layers: Mapping[str, Sequence[int]] | None
) -> dict[str, dict[str, AttentionView]]:
    """The attentions by which a text reads an image in chosen layers, by step and by the image's stream.

    Args:
        steps: The layers of the backbone.
        layers: Per stage, the layer indices that a config chooses; stages left out: every layer.

    Raises:
        ValueError: If a stage or layer is unknown.
    """
    chosen = chosen_steps(steps, layers, "layers")
    found: dict[str, dict[str, AttentionView]] = {}
    for step in steps:
        for name, layer in step.layers.items() if step.name in chosen else ():
            for view in layer.attentions if modality(name) == "text" else ():
                if modality(view.reads) == "image":
                    found.setdefault(step.name, {})[view.reads] = view
    return found
