import pytest
import torch
from attention_cases import plan_of

from smarttrim_mm.attention.base import Sequences
from smarttrim_mm.attention.pairs import attend_pairs, off_zeroed, pairs_of, pairs_pay


def test_pairs_by_hand():
    """Of instances with 2, 1 and 2 tokens: head 1 of the first, none of the second, heads 0 and 1 of the third."""
    pairs = pairs_of(Sequences.of([2, 1, 2]), plan_of([[0, 1], [0, 0], [1, 1]]))
    assert pairs.tokens.tolist() == [0, 1, 3, 4, 3, 4]
    assert pairs.heads.tolist() == [1, 1, 0, 0, 1, 1]
    assert pairs.sequences.lengths == (2, 2, 2)
    assert pairs.sequences.cu_seqlens.tolist() == [0, 2, 4, 6] and pairs.sequences.cu_seqlens.dtype == torch.int32
    x = torch.arange(10.0).view(5, 2, 1)
    gathered = pairs.gather(x)
    assert gathered.flatten().tolist() == [1, 3, 6, 8, 7, 9] and gathered.shape == (6, 1, 1)
    assert pairs.scatter(gathered, x.shape).flatten().tolist() == [0, 1, 0, 3, 0, 0, 6, 7, 8, 9]


def test_off_zeroed():
    x = torch.full((3, 2, 4), torch.nan)
    x[0, 0], x[2, 1] = 1, 2
    out = off_zeroed(x, Sequences.of([2, 1]), plan_of([[0, 0], [0, 1]]))
    assert out.sum((1, 2)).tolist() == [0, 0, 8], "what was not a number where a head is off leaves no trace"


def test_what_is_copied_must_pay():
    """One of two heads off: 10 x 40 multiply-adds are saved, 10 + 40 numbers moved, each times 2 d."""
    plan, of_q, of_k = plan_of([[0, 1]]), Sequences.of([10]), Sequences.of([40])
    assert pairs_pay(plan, of_q, of_k, 400 / 50 - 0.1)
    assert not pairs_pay(plan, of_q, of_k, 400 / 50)
    longer = Sequences.of([20]), Sequences.of([80])
    assert pairs_pay(plan, *longer, 400 / 50)  # scores grow with the square


@pytest.mark.parametrize(("price", "sequences", "executed"), [(0, 3, 2 * 8 * 3 * 4), (1000, 2, 2 * 8 * 2 * 2 * 4)])
def test_either_pairs_or_instances_are_the_sequences(price, sequences, executed):
    seen = []

    def kernel(q, k, v, of_q, of_k, scale):
        seen.append((len(of_q.lengths), q.shape, of_q is of_k))
        assert len(of_q.cu_seqlens) == len(of_q.lengths) + 1 and scale == 8**-0.5
        return v

    of, v = Sequences.of([2, 2]), torch.ones(4, 2, 8)
    out, work = attend_pairs(kernel, v, v, v, of, of, plan_of([[1, 1], [0, 1]]), price)
    assert seen == [(sequences, (6, 1, 8) if sequences == 3 else (4, 2, 8), True)] and work == executed
    assert out[..., 0].tolist() == [[1, 1], [1, 1], [0, 1], [0, 1]]


def test_kernels_get_widths_of_multiples_of_8():
    def kernel(q, k, v, of_q, of_k, scale):
        assert q.shape == k.shape == v.shape == (3, 2, 16) and scale == 12**-0.5
        return v

    of, v = Sequences.of([3]), torch.randn(3, 2, 12)
    out, work = attend_pairs(kernel, v, v, v, of, of, None)
    assert torch.equal(out, v) and work == 2 * 2 * 12 * 9
