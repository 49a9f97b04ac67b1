"""What tests of backbones and policies need: cases of everything registered, random inputs, an independent count of compute.

The contract tests walk the registries through this module, so that a new backbone or policy is tested without editing a test.
Nothing here is imported by the package itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from smarttrim_mm.layers.record import StepRecord, TrimRecord
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.registry import MODELS, POLICIES
from smarttrim_mm.structures import Decision, Streams, TokenStream, VLMInputs

Result = TypeVar("Result")


def backbone_cases() -> dict[str, dict[str, Any]]:
    """Small configs of every registered backbone, by ``'<type>/<variant>'``.

    A class of ``MODELS`` is a backbone if it has ``steps`` and ``host_forward``.

    Raises:
        ValueError: If a backbone offers no ``small_configs`` or no ``input_format``.
    """
    MODELS.import_from_location()
    cases = {}
    for name, cls in sorted(MODELS.module_dict.items()):
        if not (hasattr(cls, "steps") and hasattr(cls, "host_forward")):
            continue
        if not (hasattr(cls, "small_configs") and hasattr(cls, "input_format")):
            raise ValueError(f"{name} is a backbone without small_configs() or input_format; add both, as METER has them")
        cases.update({f"{name}/{variant}": config for variant, config in cls.small_configs().items()})
    return cases


def policy_cases() -> dict[str, dict[str, Any]]:
    """Example configs of every registered policy, by ``'<type>/<variant>'``."""
    POLICIES.import_from_location()
    return {
        f"{name}/{variant}": {"type": name, **config}
        for name, cls in sorted(POLICIES.module_dict.items())
        for variant, config in cls.example_configs().items()
    }


def random_inputs(
    input_format: Mapping[str, int], lengths: Sequence[int], image_index: Sequence[int] | None = None, seed: int = 0
) -> VLMInputs:
    """Random pixels, texts and answers that a backbone accepts.

    Args:
        input_format: The backbone's ``input_format``: image_size, vocab_size, begin_id, end_id, pad_id, num_classes, and, if
            not 1, images_per_text.
        lengths: Tokens of each text, begin and end included, at least 2 each.
        image_index: Image of each text, or its first, the next ones following; None: images of its own.
        seed: Of the random numbers.
    """
    each = input_format.get("images_per_text", 1)
    generator = torch.Generator().manual_seed(seed)
    size, vocabulary = input_format["image_size"], input_format["vocab_size"]
    special = [input_format["begin_id"], input_format["end_id"], input_format["pad_id"]]
    texts, pairs = torch.arange(len(lengths)), torch.arange(len(lengths) * each)
    first = texts * each if image_index is None else torch.tensor(image_index)
    images = len(pairs) if image_index is None else int(first.max()) + 1
    index = ((first[:, None] + torch.arange(each)) % images).flatten()
    ends = torch.tensor(lengths)
    text_mask = torch.arange(max(lengths)) < ends.unsqueeze(1)
    words = torch.tensor([word for word in range(vocabulary) if word not in special])
    input_ids = words[torch.randint(len(words), text_mask.shape, generator=generator)]
    input_ids[:, 0], input_ids[texts, ends - 1] = special[0], special[1]
    input_ids[~text_mask] = special[2]
    special_mask = torch.zeros_like(text_mask)
    special_mask[:, 0] = special_mask[texts, ends - 1] = True
    return VLMInputs(
        images=torch.randn(images, 3, size, size, generator=generator),
        image_index=None if image_index is None else index,
        image_ids=torch.arange(images) + 100,
        input_ids=input_ids,
        text_mask=text_mask,
        special_mask=special_mask,
        sample_ids=pairs + 1000,
        targets=torch.randint(input_format["num_classes"], texts.shape, generator=generator),
        text_index=pairs // each if each > 1 else None,
        text_ids=texts + 500 if each > 1 else None,
        pairs_per_sample=each,
    )


@torch.no_grad()
def excite(module: nn.Module, seed: int = 0) -> None:
    """Gives every parameter a random value of a size that matters, so that no error hides behind small or zero weights."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise * parameter.shape[1:].numel() ** -0.5)
        else:
            parameter.add_(0.2 * noise)


def count_multiply_adds(function: Callable[[], Result]) -> tuple[Result, int]:
    """Runs a function and counts its multiply-adds by what torch dispatches, knowing nothing of records.

    Returns:
        What the function returned, and half of the floating-point operations of ``FlopCounterMode``, to which the attention
        kernel of the CPU is added.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={attention: _attention_flops})
    with counter:
        result = function()
    return result, counter.get_total_flops() // 2


def _attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[2] * (width + v[3])


class Replay(Policy):
    """Repeats the decisions of a record, in either execution.

    Args:
        record: What was decided.
        samples: Which samples of the record the new batch holds, long [g], unshared; None: the same batch.
    """

    def __init__(self, record: TrimRecord, samples: Tensor | None = None) -> None:
        super().__init__(steps=[])
        pairs = None if samples is None else pairs_of(record, samples)
        self.grids: dict[str, dict[str, Tensor]] = {}
        self.heads: dict[str, dict[str, Tensor]] = {}
        for entry in record.steps:
            rows = _rows(entry, pairs)
            self.grids[entry.step.name] = {name: layout.kept_grid()[rows] for name, layout in entry.tokens.items()}
            self.heads[entry.step.name] = {name: (gate > 0)[rows] for name, gate in entry.heads.items()}

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        keep = {}
        for name, stream in streams.items():
            width = stream.layout.kept_grid().shape[1]  # a smaller batch may be padded less
            keep[name] = stream.layout.from_grid(_of_instances(self.grids[step.name][name], stream)[:, :width])
        first = next(iter(streams.values()))
        heads = {name: _of_instances(grid, first) for name, grid in self.heads[step.name].items()}
        return Decision(keep=keep, heads=heads)


def _of_instances(grid: Tensor, stream: TokenStream) -> Tensor:
    """One row an instance: where the pairs of a sample run as one instance, the first pair's."""
    return grid[:: max(1, len(grid) // stream.layout.batch_size)]


def _rows(entry: StepRecord, pairs: Tensor | None) -> Tensor | slice:
    if pairs is None:
        return slice(None)
    return pairs if entry.rows is None else entry.rows[pairs]


class Strip(Policy):
    """Keeps nothing that another policy may cut: neither tokens nor heads; gates carry gradients.

    Args:
        policy: Whose streams, attentions and overhead these are; None: everything is cut, for free.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        super().__init__(steps=[])
        self.policy = policy

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        cut, attentions = self.trims(step)
        views = [view for layer in step.layers.values() for view in layer.attentions if view.name in attentions]
        first = next(iter(streams.values()))
        return Decision(
            keep={name: _zeros(streams[name].x.shape[:-1]) for name in cut},
            heads={view.name: _zeros((first.layout.batch_size, view.heads)) for view in views},
        )

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        if self.policy is not None:
            return self.policy.trims(step)
        return frozenset(step.streams()), frozenset(v.name for layer in step.layers.values() for v in layer.attentions)

    def reads(self, step: LayerStep) -> frozenset[str]:
        return super().reads(step) if self.policy is None else self.policy.reads(step)

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        return 0.0 if self.policy is None else self.policy.multiply_adds(step, counts)


def _zeros(shape: Sequence[int]) -> Tensor:
    return torch.zeros(shape, requires_grad=True)


def pairs_of(record: TrimRecord, samples: Tensor) -> Tensor:
    """Indices of the pairs of some samples, long [g pairs_per_sample]."""
    return (samples[:, None] * record.pairs_per_sample + torch.arange(record.pairs_per_sample)).flatten()


def kept_grids(record: TrimRecord) -> dict[str, Tensor]:
    """Per ``'<step>/<stream>'`` the kept positions, and per ``'<step>/<attention>'`` the heads that are on, per pair, bool."""
    grids: dict[str, Tensor] = {}
    for entry in record.steps:
        rows = slice(None) if entry.rows is None else entry.rows
        for name, layout in entry.tokens.items():
            grids[f"{entry.step.name}/{name}"] = layout.kept_grid()[rows]
        for name, gate in entry.heads.items():
            grids[f"{entry.step.name}/{name}"] = (gate > 0)[rows]
    return grids
