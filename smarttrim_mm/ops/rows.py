"""Picking tokens of each instance of a padded batch, by rows of one table."""

import torch
from torch import Tensor


def row_numbers(index: Tensor, size: int) -> Tensor:
    """Numbers of the tokens of each instance among those of the batch, one instance after the other.

    Args:
        index: Places of tokens in their instance, long [B, n].
        size: Tokens of an instance N.

    Returns:
        long [B n].
    """
    begins = size * torch.arange(len(index), device=index.device)
    return (index + begins.unsqueeze(1)).flatten()


def take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Some tokens of each instance, in the given order.

    Args:
        x: Tokens or values of them, [B, N, ...].
        index: Their places, long [B, n].

    Returns:
        [B, n, ...].
    """
    # whole rows: gather with an index as wide as a token goes over single numbers
    return x.flatten(0, 1).index_select(0, row_numbers(index, x.shape[1])).unflatten(0, index.shape)
