import pytest
import torch
from attention_cases import HEADS, least_work, packed, plan_of, written_out

from smarttrim_mm.attention.per_sequence import PerSequenceSDPA


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_each_sequence_on_its_own_heads(heads):
    case = packed((3, 1, 2), (2, 5, 1))
    heads = plan_of(heads)
    out, executed = PerSequenceSDPA()(*case, heads)
    torch.testing.assert_close(out, written_out(*case, heads))
    assert executed == least_work(case[0], *case[3:], heads)
