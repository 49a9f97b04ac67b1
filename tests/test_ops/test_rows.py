import torch

from smarttrim_mm.ops.rows import row_numbers, take_tokens


def test_tokens_come_in_the_given_order():
    x = torch.arange(2 * 3 * 2.0).view(2, 3, 2)
    index = torch.tensor([[2, 0], [1, 1]])
    assert row_numbers(index, 3).tolist() == [2, 0, 4, 4]
    assert take_tokens(x, index).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
    assert take_tokens(x[..., 0], index).tolist() == [[4, 0], [8, 8]]
