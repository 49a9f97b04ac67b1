"""Parts of a layer that some instances skip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from smarttrim_mm.structures import PackedLayout, TokenStream

Ran = tuple[TokenStream, int]  # a stream behind a part of its layer, and the multiply-adds that were executed


@dataclass(frozen=True)
class Turns:
    """Which instances run a part of a layer.

    Attributes:
        gate: Above 0 where an instance runs it, [B], with its gradient in training.
        chosen: Those that do, on the host; None: streams are padded, and all are computed.
        whole: Whether all do.
    """

    gate: Tensor
    chosen: tuple[int, ...] | None
    whole: bool

    @classmethod
    def of(cls, gate: Tensor, rows: Sequence[int]) -> Turns:
        """Turns on packed streams; ``rows`` is the gate on the host."""
        chosen = tuple(i for i, value in enumerate(rows) if value > 0)
        return cls(gate, chosen, len(chosen) == len(rows))


def take_turns(
    turns: Turns | None, stream: TokenStream, run: Callable[[], Ran], run_some: Callable[[tuple[int, ...]], Ran]
) -> Ran:
    """Runs a part of a layer for those whose turn it is; the tokens of the others stay what they are.

    Args:
        turns: Whose turn it is; None: everyone's.
        stream: The stream that comes to the part.
        run: Runs it for all.
        run_some: Runs it for some instances of packed streams, at least one; the tokens of the others are as they came.

    Returns:
        What comes out.
    """
    if turns is None or turns.whole:
        return run()
    if turns.chosen is None:
        after, executed = run()
        gate = turns.gate.to(after.x.dtype)[:, None, None]
        return after.with_tokens(stream.x + gate * (after.x - stream.x)), executed
    return run_some(turns.chosen) if turns.chosen else (stream, 0)


def take_some(stream: TokenStream, chosen: Sequence[int]) -> tuple[TokenStream, Tensor]:
    """Some instances of a packed stream, and the rows of their tokens, long."""
    assert isinstance(stream.layout, PackedLayout)
    x, layout, rows = stream.layout.some(stream.x[: stream.layout.rows], chosen)
    return TokenStream(x, layout), rows


def put_back(stream: TokenStream, rows: Tensor, some: TokenStream) -> TokenStream:
    """The stream with the tokens of some instances at their rows."""
    return stream.with_tokens(stream.x.index_copy(0, rows, some.x))
