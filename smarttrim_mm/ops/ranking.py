"""Ranking the tokens of each instance, and random scores that do not depend on the batch."""

import torch
from torch import Tensor


def keep_top(grid: Tensor, counts: Tensor) -> Tensor:
    """Marks the best ``counts`` tokens of each row; ties go to the lower index.

    Args:
        grid: Scores over the original positions, -inf where there is no token, [B, N].
        counts: How many to keep per row, long [B].

    Returns:
        bool [B, N].
    """
    return (ranks(grid) < counts.unsqueeze(1)) & (grid > -torch.inf)


def ranks(grid: Tensor) -> Tensor:
    """The place of each token in its row, 0 for the best; ties go to the lower index.

    Args:
        grid: Scores, [B, N].

    Returns:
        long [B, N].
    """
    order = grid.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(grid.shape[1], device=grid.device).expand_as(order))
    return rank


def top_of_columns(values: Tensor, numbers: Tensor, count: int, *, width: int = 1024) -> tuple[Tensor, Tensor]:
    """The largest values of each column and whose they are; ties go to the lower number.

    Applied to what it gave for the parts of a matrix, one below the other, it gives what it would for the whole.

    Args:
        values: [n, M].
        numbers: Whose value it is, long, [n, M] or [n, 1]; no number twice in a column.
        count: How many, at least 1; more than there are means all.
        width: Columns that are sorted at once.

    Returns:
        The values, largest first, and their numbers, [min(count, n), M] each.
    """
    found = []
    for part, whose in zip(values.split(width, 1), numbers.expand(values.shape).split(width, 1), strict=True):
        by_number = whose.argsort(0)
        best, order = part.gather(0, by_number).sort(dim=0, descending=True, stable=True)
        found.append((best[:count], whose.gather(0, by_number).gather(0, order[:count])))
    best, whose = zip(*found, strict=True)
    return torch.cat(best, 1), torch.cat(whose, 1)


def hash_uniform(*keys: Tensor | int) -> Tensor:
    """Reproducible uniform numbers from integer keys (the SplitMix64 finaliser, Steele et al., OOPSLA 2014).

    Args:
        keys: Integer tensors or numbers that broadcast against each other; the same keys give the same number on every
            device and in every batch.

    Returns:
        Numbers in [0, 1), fp32, of the broadcast shape.
    """
    state: Tensor | int = 0
    for key in keys:
        # 64-bit wrap-around is intended; the constants are SplitMix64's, written as signed integers
        state = _mix(state * 31 + key + -7046029254386353131)
    assert isinstance(state, Tensor)
    return ((state >> 40) & 0xFFFFFF).to(torch.float32) / 2**24


def _mix(state: Tensor | int) -> Tensor:
    z = torch.as_tensor(state)
    z = (z ^ _shift_right(z, 30)) * -4658895280553007687
    z = (z ^ _shift_right(z, 27)) * -7723592293110705685
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # logical, not arithmetic
