"""Further rows behind packed tokens, so that few different numbers of rows occur.

oneDNN, which multiplies half-precision numbers on a CPU, prepares a product for each number of rows that it has not seen: 0.5
to 1.5 ms each, more than many a product itself. Tokens are kept in ever new numbers; rounded up, the numbers soon repeat.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

_FEW = 512  # rows; fewer are rounded to a multiple of the first, others of the second: some 2 % more rows
_MULTIPLES = 16, 64


def fill_rows(x: Tensor) -> Tensor:
    """Packed tokens [S, D], followed by rows that mean nothing where that makes products on them faster.

    That is in half precision on a CPU, without gradients. Where tokens begin a larger tensor, as those that :func:`take_rows`
    or a layer gave do, its own rows behind them are taken: nothing is copied.
    """
    rows = _filled(x, x.shape[0])
    if rows == x.shape[0]:
        return x
    end = (x.storage_offset() + rows * x.shape[1]) * x.element_size()
    if x.is_contiguous() and end <= x.untyped_storage().nbytes():
        return x.as_strided((rows, x.shape[1]), x.stride())
    return pad(x, (0, 0, 0, rows - len(x)))


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """``x.index_select(0, rows)``, with room behind it for :func:`fill_rows`."""
    filled = _filled(x, len(rows))
    if filled == len(rows):
        return x.index_select(0, rows)
    taken = x.new_empty(filled, x.shape[1])
    taken[len(rows) :].zero_()
    torch.index_select(x, 0, rows, out=taken[: len(rows)])
    return taken[: len(rows)]


def _filled(x: Tensor, rows: int) -> int:
    """To how many rows like those of x so many are rounded up."""
    if x.device.type != "cpu" or x.dim() != 2 or torch.is_grad_enabled():
        return rows
    lowered = x.dtype is torch.float32 and torch.is_autocast_enabled("cpu")
    if not lowered and x.dtype not in (torch.bfloat16, torch.float16):
        return rows
    return rows + -rows % _MULTIPLES[rows >= _FEW]
