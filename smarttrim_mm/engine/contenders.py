"""Who is timed: the host's dense forwards, the packed dense execution, and policies. Each is a function of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from smarttrim_mm.engine.cuda_graph import GraphedForward
from smarttrim_mm.engine.precision import PRECISIONS, Precision
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import PackedLayout, PaddedLayout

HOST, HOST_SDPA, PACKED = "host dense", "host dense, SDPA", "packed dense"
COMPILED, GRAPHED = "host dense, compiled", "host dense, CUDA graph"
DENSE_HOSTS = {
    HOST: "host's forward",
    HOST_SDPA: "host's forward, SDPA",
    COMPILED: "host's forward, SDPA, torch.compile",
    GRAPHED: "host's forward, SDPA, one CUDA graph",
}

Contender = Callable[[VLMInputs], tuple[Tensor, TrimRecord | None]]


def dense_contenders(model: TrimmedVLM) -> dict[str, Contender]:
    """The host's own dense forward, the same with SDPA if that is another, and the packed execution that keeps everything.

    Args:
        model: The model, in evaluation mode.
    """
    found: dict[str, Contender] = {HOST: lambda inputs: (model.host_forward(inputs), None)}
    if sdpa_baseline(model) == HOST_SDPA:
        forward = sdpa_forward(model)
        found[HOST_SDPA] = lambda inputs: (forward(inputs), None)
    found[PACKED] = partial(model.trace, policy=model.dense, kind="packed")
    return found


def policy_contenders(model: TrimmedVLM, policies: Mapping[str, Policy]) -> dict[str, Contender]:
    """The model as it infers, under policies, by name."""
    return {name: partial(model.trace, kind=None, policy=policy) for name, policy in policies.items()}


def compiled_contender(model: TrimmedVLM, first: VLMInputs, precision: Precision = PRECISIONS["fp32"]) -> Contender:
    """The host's dense forward with SDPA under ``torch.compile``; what was compiled before is forgotten.

    Where the host's code breaks the graph, its parts are compiled.

    Args:
        model: The model, in evaluation mode.
        first: A batch, to see whether it compiles.
        precision: As the clocks will run it.

    Raises:
        RuntimeError: If it does not compile.
    """
    import torch._dynamo.config as settings

    torch._dynamo.reset()
    # beyond so many recompilations torch would run the code as it is, without a word
    settings.fail_on_recompile_limit_hit = True
    with_sdpa = _with_sdpa(model)
    compiled = torch.compile(model.host_forward)

    def run(inputs: VLMInputs) -> tuple[Tensor, None]:
        with with_sdpa:
            return compiled(inputs), None

    try:
        with torch.inference_mode():
            in_precision(run, precision)(first)
    except Exception as error:
        raise RuntimeError(
            f"--compile: torch.compile does not run {type(model.backbone).__name__}'s forward here ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}); on a CPU it needs a C++ compiler. Leave --compile out, or install what it "
            "names"
        ) from error
    return run


def graphed_contender(
    model: TrimmedVLM, first: VLMInputs, *, text_length: int, precision: Precision = PRECISIONS["fp32"]
) -> Contender:
    """The host's dense forward with SDPA as one CUDA graph, see :class:`~smarttrim_mm.engine.cuda_graph.GraphedForward`.

    Args:
        model: The model, in evaluation mode, on a GPU.
        first: A batch of the size to come.
        text_length: Tokens that texts are padded to.
        precision: As the clocks will run it.

    Raises:
        RuntimeError: If the host's forward waits for the GPU, which no graph can hold.
    """
    forward, pad = sdpa_forward(model), model.backbone.input_format.get("pad_id", 0)
    device = first.images.device

    def in_numbers(inputs: VLMInputs) -> Tensor:
        with precision.context(device):
            return forward(inputs)

    graphed = GraphedForward(in_numbers, first, text_length=text_length, pad_id=pad)
    return lambda inputs: (graphed(inputs), None)


def in_precision(run: Contender, precision: Precision) -> Contender:
    """The same in other numbers; a batch must have its images in them."""
    if not precision.autocast:
        return run

    def cast(inputs: VLMInputs) -> tuple[Tensor, TrimRecord | None]:
        with precision.context(inputs.images.device):
            return run(inputs)

    return cast


def sdpa_forward(model: TrimmedVLM) -> Callable[[VLMInputs], Tensor]:
    """The host's dense forward, with SDPA if it can be had."""
    with_sdpa = _with_sdpa(model)

    def forward(inputs: VLMInputs) -> Tensor:
        with with_sdpa:
            return model.host_forward(inputs)

    return forward


def sdpa_baseline(model: TrimmedVLM) -> str | None:
    """Which contender is the host's dense forward with scaled_dot_product_attention."""
    if getattr(model.backbone, "host_uses_sdpa", False):
        return HOST
    return HOST_SDPA if hasattr(model.backbone, "with_sdpa") else None


def about_sdpa(model: TrimmedVLM) -> str:
    """What the two baselines are, in words."""
    found, kind = sdpa_baseline(model), type(model.backbone).__name__
    if found == HOST:
        return f"{kind}'s own forward has scaled_dot_product_attention: both baselines are {HOST!r}."
    if found is None:
        return f"{kind} has no with_sdpa(): the only baseline is {HOST!r}, whatever its attention is."
    return f"{HOST!r} has {kind}'s own attention, {HOST_SDPA!r} is the same with scaled_dot_product_attention."


def path_of(record: TrimRecord) -> str:
    """How the layers of a pass ran: ``'packed'``, or the same decisions in ``'dense shapes'``, or padded to the longest."""
    kinds = {PackedLayout: "packed", PaddedLayout: "dense shapes"}
    layouts = {type(layout) for step in record.steps for layout in step.tokens.values()}
    return ", ".join(sorted({kinds.get(kind, "padded to the longest") for kind in layouts}))


def _with_sdpa(model: TrimmedVLM) -> AbstractContextManager:
    return model.backbone.with_sdpa() if sdpa_baseline(model) == HOST_SDPA else nullcontext()
