"""A dense forward as one CUDA graph: what a GPU does at batch 1 once no time goes into launching its kernels.

It could not be tried on a GPU where it was written; tests replay it with a stand-in for the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from smarttrim_mm.inputs import VLMInputs

Forward = Callable[[VLMInputs], Tensor]
_WARMUP = 3  # as torch's notes on CUDA graphs advise, on a side stream


class GraphedForward:
    """Replays a forward on new inputs, copied to where the graph reads them.

    Copying is part of a call, and so of its time. Texts are padded to one length, as a graph has one shape.

    Args:
        forward: Gives logits; without any wait for the GPU.
        first: A batch; later ones have as many images and texts.
        text_length: Tokens that texts are padded to.
        pad_id: The token to do it with.
        capture: Captures a function once it was warmed up; returns what runs it again, and its result.

    Raises:
        RuntimeError: If the forward cannot be captured.
    """

    def __init__(
        self,
        forward: Forward,
        first: VLMInputs,
        *,
        text_length: int,
        pad_id: int,
        capture: Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]] | None = None,
    ) -> None:
        self.text_length, self.pad_id = text_length, pad_id
        given = pad_texts(first, text_length, pad_id)
        own: dict[str, Any] = {name: value.clone() for name, value in vars(given).items() if isinstance(value, Tensor)}
        self.static = replace(given, **own)
        with torch.inference_mode():
            self.replay, self.logits = (capture or capture_on_gpu)(lambda: forward(self.static))

    def __call__(self, inputs: VLMInputs) -> Tensor:
        """Logits [G, C] of a batch."""
        given = pad_texts(inputs, self.text_length, self.pad_id)
        for name, value in vars(self.static).items():
            if isinstance(value, Tensor):
                value.copy_(getattr(given, name))
        self.replay()
        return self.logits.clone()


def capture_on_gpu(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Captures a function without arguments with ``torch.cuda.graph``."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARMUP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run()
    return graph.replay, logits


def pad_texts(inputs: VLMInputs, length: int, pad_id: int) -> VLMInputs:
    """The batch with texts of one length.

    Args:
        inputs: The batch.
        length: Tokens of a text, at least those of the batch's longest.
        pad_id: The token to pad with.

    Raises:
        ValueError: If a text is longer.
    """
    missing = length - inputs.input_ids.shape[1]
    if missing < 0:
        raise ValueError(f"a text has {inputs.input_ids.shape[1]} tokens; expected at most text_length, {length}")
    return replace(
        inputs,
        input_ids=pad(inputs.input_ids, (0, missing), value=pad_id),
        text_mask=pad(inputs.text_mask, (0, missing), value=False),
        special_mask=pad(inputs.special_mask, (0, missing), value=False),
    )
