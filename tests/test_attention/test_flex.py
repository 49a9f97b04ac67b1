import numpy as np
import pytest
import torch
from attention_cases import least_work, packed, plan_of, written_out
from torch.nn.attention.flex_attention import create_block_mask

from smarttrim_mm.attention import flex
from smarttrim_mm.attention.flex import FlexAttention, blocks_of

LENGTHS = [
    ((7,), (9,)),
    ((300,), (400,)),
    ((100, 150, 200), (30, 300, 70)),
    ((128, 128), (256, 128)),
    ((1, 2, 3, 500), (300, 1, 200, 129)),
]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_blocks_are_those_of_torch(lengths):
    """Laid out from lengths alone, against torch's evaluation of the mask at every pair."""
    of_q, of_k = (torch.arange(len(of)).repeat_interleave(torch.tensor(of)) for of in lengths)
    expected = create_block_mask(lambda b, h, i, j: of_q[i] == of_k[j], 1, None, len(of_q), len(of_k), device="cpu")
    mask, scores = flex._block_mask(*lengths, torch.device("cpu"))
    assert torch.equal(mask.to_dense(), expected.to_dense()) and mask.shape == expected.shape
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(mask, name), getattr(expected, name)), name
    touched, _ = blocks_of(*map(np.array, lengths))
    inside = torch.from_numpy(touched).repeat_interleave(128, 0).repeat_interleave(128, 1)[: len(of_q), : len(of_k)]
    assert scores == inside.sum()


def test_what_is_executed():
    """Uncompiled all scores of the batch; compiled those of the blocks: of 2 x 2 blocks two, as each instance fills one."""
    case = packed((128, 128), (128, 128))
    out, executed = FlexAttention()(*case)
    torch.testing.assert_close(out, written_out(*case), atol=1e-5, rtol=0)
    assert executed == 2 * least_work(case[0], *case[3:])
    flex_attention = flex._compiled
    try:
        flex._compiled = lambda: flex.flex_attention
        assert FlexAttention(compiled=True)(*case)[1] == least_work(case[0], *case[3:])
    finally:
        flex._compiled = flex_attention


@pytest.mark.slow
def test_compiled_on_a_cpu():
    attention = FlexAttention(compiled=True)
    for lengths, rows in (((100, 150, 20), [[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]), ((3, 200), None)):
        case, heads = packed(lengths, lengths, width=16), plan_of(rows)
        with torch.no_grad():
            out, _ = attention(*case, heads)
        torch.testing.assert_close(out, written_out(*case, heads), atol=1e-5, rtol=0)


def test_what_torch_does_not_compile():
    with pytest.raises(ValueError, match=r"compiled=True\) got 3 queries and 5 keys on a CPU"):
        FlexAttention(compiled=True)(*packed((1, 2), (2, 3)))
