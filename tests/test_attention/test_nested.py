import torch
from attention_cases import least_work, packed, plan_of, written_out

from smarttrim_mm.attention.nested import NestedAttention


def test_pairs_are_the_sequences_and_nothing_is_padded():
    case = packed((30, 1, 20), (2, 50, 10))
    heads = plan_of([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]])
    out, executed = NestedAttention(multiply_adds_per_move=0)(*case, heads)
    torch.testing.assert_close(out, written_out(*case, heads), atol=1e-5, rtol=0)
    assert executed == least_work(case[0], *case[3:], heads)
    assert NestedAttention()(*case, heads)[1] == least_work(case[0], *case[3:]), "short: heads that are off are attended"
