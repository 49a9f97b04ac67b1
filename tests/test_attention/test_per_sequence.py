import pytest
import torch
from attention_cases import HEADS, least_work, packed, plan_of, written_out

from smarttrim_mm.attention.per_sequence import PerSequenceSDPA, _as_slice


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_each_sequence_on_its_own_heads(heads):
    case = packed((3, 1, 2), (2, 5, 1))
    heads = plan_of(heads)
    out, executed = PerSequenceSDPA()(*case, heads)
    torch.testing.assert_close(out, written_out(*case, heads))
    assert executed == least_work(case[0], *case[3:], heads)


@pytest.mark.parametrize("on", [(0,), (3,), (0, 1), (1, 3), (0, 3), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3)])
def test_kept_heads_as_a_slice(on):
    chosen = _as_slice(on)
    assert torch.arange(4)[chosen].tolist() == list(on)
    assert isinstance(chosen, slice) == (on not in ((0, 1, 3), (0, 2, 3)))
