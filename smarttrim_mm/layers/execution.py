"""Carries streams through the stages of a backbone under a policy, and keeps the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from smarttrim_mm.attention.base import ChosenAttention
from smarttrim_mm.layers.path_choice import is_large, packing_pays
from smarttrim_mm.layers.record import AheadRecord, LinearRecord, StepRecord, TrimRecord, decoder_multiply_adds
from smarttrim_mm.layers.run_layer import run_layer
from smarttrim_mm.layers.token_wise import TokenWise
from smarttrim_mm.layers.views import LayerStep, LayerView
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.policies.dense import Dense
from smarttrim_mm.structures import PackedLayout, TokenStream

Kind = Literal["masked", "packed", "adaptive"]


class Execution:
    """One forward pass: how tokens lie, who decides, and what was recorded.

    Args:
        policy: Decides what stays.
        sample_ids: Identity of each image-text pair, long [B].
        kind: ``'masked'`` keeps dropped tokens behind gates (training), ``'packed'`` leaves them out (inference).
            ``'adaptive'`` begins masked, and is packed from the layer on from which that pays, see
            :mod:`~smarttrim_mm.layers.path_choice`.
        checkpoint_layers: Whether layers are recomputed in the backward pass to save memory.
        pairs_per_sample: Consecutive pairs whose compute is summed as that of one sample.
        attention: Computes the attention of packed streams; None: the best backend that can run.
        token_wise: Computes what is done to each token alone; None: as it is.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        sample_ids: Tensor,
        kind: Kind,
        checkpoint_layers: bool = False,
        pairs_per_sample: int = 1,
        attention: ChosenAttention | None = None,
        token_wise: TokenWise | None = None,
    ) -> None:
        self.policy = policy
        self.attention = attention or ChosenAttention()
        self.token_wise = token_wise or TokenWise()
        self.kind = kind
        self.checkpoint_layers = checkpoint_layers
        self.record = TrimRecord(sample_ids, policy, pairs_per_sample=pairs_per_sample, packed=kind == "packed")

    def start(self, stream: TokenStream) -> TokenStream:
        """The stream as this execution wants it to lie."""
        return stream.pack() if self.kind == "packed" else stream

    def run(
        self,
        steps: Sequence[LayerStep],
        streams: Mapping[str, TokenStream],
        *,
        guides: Mapping[str, Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> dict[str, TokenStream]:
        """Runs one stage.

        Args:
            steps: The stage's layers.
            streams: Its streams; each step gets those that it names.
            guides: Guide tokens [B, D] of other streams, where the steps declare them.
            rows: Which instance of these streams each image-text pair uses, long [B], or several, all of which count for it,
                [B, k]; None: one each.

        Returns:
            The streams after the stage.
        """
        if self.kind == "adaptive" and steps and is_large(steps[0], streams):
            self._pack_from_now_on()
        current = {name: stream.pack() if self.kind == "packed" else stream for name, stream in streams.items()}
        del streams
        for step in steps:
            record: StepRecord
            pays = packing_pays if self.kind == "adaptive" else None
            how = (self.policy, guides, self.attention, self.token_wise, pays)
            # streams are handed over: whoever runs the layer can let go of what it drops
            if self.checkpoint_layers:
                after, record = checkpoint(run_layer, step, _take(current, step), *how, use_reentrant=False)
            else:
                after, record = run_layer(step, _take(current, step), *how)
            current |= after
            if pays is not None and any(isinstance(stream.layout, PackedLayout) for stream in after.values()):
                self._pack_from_now_on()
                current = {name: stream.pack() for name, stream in current.items()}
            self.record.entries.append(record if rows is None else replace(record, rows=rows))
        return current

    def _pack_from_now_on(self) -> None:
        self.kind, self.record.packed = "packed", True

    def read_ahead(
        self, steps: Sequence[LayerStep], streams: Mapping[str, TokenStream], *, rows: Tensor | None = None
    ) -> dict[str, TokenStream]:
        """Runs layers that the host would not run here, whole, so that the policy can be guided by what they give.

        They are counted as compute of the policy: decided and executed, but no part of the dense model.

        Args:
            steps: The layers.
            streams: Their streams.
            rows: As in :meth:`run`.

        Returns:
            The streams after them.
        """
        sample_ids = next(iter(streams.values())).layout.ids
        whole = Execution(
            Dense(steps=steps),
            sample_ids=sample_ids,
            kind=self.kind,
            checkpoint_layers=self.checkpoint_layers,
            attention=self.attention,
            token_wise=self.token_wise,
        )
        after = whole.run(steps, streams)
        multiply_adds = torch.stack([entry.dense() for entry in whole.record.steps]).sum(0)
        executed = sum(entry.executed for entry in whole.record.steps)
        self.record.entries.append(AheadRecord("policy.read_ahead", multiply_adds, executed, rows))
        return after

    def linear(
        self,
        multiply_adds: int,
        stream_name: str | None = None,
        stream: TokenStream | None = None,
        *,
        name: str,
        instances: int | None = None,
        pairs: int = 1,
        rows: Tensor | None = None,
    ) -> None:
        """Records a linear map outside the layers.

        Args:
            multiply_adds: Its compute per token of the stream, or each time it runs if no stream is given.
            stream_name: The stream's name.
            stream: The stream it ran on.
            name: Its own name, ``'<part>.<what>'``: part is the stage it belongs to, or ``'head'``.
            instances: Without a stream, how often it ran; None: once for each group of ``pairs`` image-text pairs.
            pairs: Without a stream, how many pairs share one run of it.
            rows: Which instance of the stream each pair uses, long [B]; None: one each.
        """
        if stream is None:
            ran_on = len(self.record.sample_ids) // pairs if instances is None else instances
        else:
            ran_on = stream.x.shape[:-1].numel()
        layout = stream.layout if stream else None
        entry = LinearRecord(name, stream_name, layout, multiply_adds / pairs, multiply_adds * ran_on, rows)
        self.record.entries.append(entry)

    def decoder(
        self,
        layers: Mapping[str, Sequence[LayerView]],
        memory: TokenStream,
        lengths: Tensor,
        index: Tensor,
        *,
        name: str,
        per_token: int,
        padded: int,
        done: Tensor | None = None,
        after: bool = False,
        beside: Mapping[str, TokenStream] | None = None,
    ) -> None:
        """Records a run of a host's decoder, whose texts read a stream whole.

        Args:
            layers: By the name of the stream that they read, the views of its layers.
            memory: The stream.
            lengths: Tokens of each text, long [A].
            index: Which instance of the stream each text reads, long [A].
            name: ``'<part>.<what>'``.
            per_token: Multiply-adds per token of a text outside the layers: of the head.
            padded: Tokens of each text as the decoder runs it, padding included.
            done: True at texts that were finished before the others: executed, but not needed, bool [A]; None: none.
            after: Whether the texts come after the stream and attend to it with themselves, by keys and values made of it.
            beside: Further streams, by name, padded each and read as one with the stream; None: none.
        """
        others = beside or {}
        ((stream, views),) = layers.items()
        n = lengths.float()
        without, with_one = (
            decoder_multiply_adds(views, stream, n, torch.full_like(n, m), per_token, after) for m in (0.0, 1.0)
        )
        if done is not None:
            without, with_one = without * ~done, with_one * ~done
        none = n.new_zeros(memory.layout.batch_size)
        fixed, per_memory = none.index_add(0, index, without), none.index_add(0, index, with_one - without)
        held = torch.stack([each.layout.counts()[index].max() for each in (memory, *others.values())]).sum()
        executed = len(n) * decoder_multiply_adds(views, stream, torch.full_like(held, padded), held, per_token, after)
        self.record.entries.append(LinearRecord(name, stream, memory.layout, per_memory, executed, fixed=fixed))
        self.record.entries += [LinearRecord(name, other, each.layout, per_memory, 0) for other, each in others.items()]


def _take(streams: dict[str, TokenStream], step: LayerStep) -> dict[str, TokenStream]:
    """Takes out the streams that a step names."""
    return {name: streams.pop(name) for name in step.streams() if name in streams}
