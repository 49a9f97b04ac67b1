import pytest
import torch
from attention_cases import HEADS, packed, plan_of, written_out

from smarttrim_mm.attention import adaptive, per_sequence
from smarttrim_mm.attention.adaptive import AdaptiveSDPA

UNEQUAL = ((1, 2, 3), (1, 2, 3))


@pytest.fixture
def attention(monkeypatch):
    """A backend that says which of its two ways it went."""
    chosen = AdaptiveSDPA()
    chosen.ways = []
    for name in ("alone", "bucketed"):
        way = getattr(chosen, name)
        setattr(chosen, name, lambda *args, name=name, way=way: chosen.ways.append(name) or way(*args))
    return chosen


@pytest.mark.parametrize(
    ("lengths", "heads", "way"),
    [
        (UNEQUAL, None, "alone"),
        (UNEQUAL, "some", "alone"),
        (((3, 3, 3), (3, 3, 3)), None, "bucketed"),  # nothing to pad
        (((3, 3, 3), (5, 5, 5)), "some", "bucketed"),
        (((3, 3, 3), (5, 4, 5)), None, "alone"),
        (((3,), (2,)), None, "alone"),  # one sequence
    ],
)
def test_ways(attention, lengths, heads, way):
    case, heads = packed(*lengths), plan_of(HEADS[heads]) if heads else None
    out, _ = attention(*case, heads)
    assert attention.ways == [way]
    torch.testing.assert_close(out, written_out(*case, heads))


def test_little_work_is_done_by_one_thread(monkeypatch):
    host, used = per_sequence.scaled_dot_product_attention, []

    def attend(*args, **kwargs):
        used.append(torch.get_num_threads())
        return host(*args, **kwargs)

    monkeypatch.setattr(per_sequence, "scaled_dot_product_attention", attend)
    attention, case = AdaptiveSDPA(), packed(*UNEQUAL)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        attention(*case)
        monkeypatch.setattr(adaptive, "_ONE_THREAD_MULTIPLY_ADDS", 100)
        attention(*case)
        assert used == [1] * 3 + [2] * 3 and torch.get_num_threads() == 2
        monkeypatch.setattr(adaptive, "_ONE_THREAD_MULTIPLY_ADDS", 2**40)
        with pytest.raises(RuntimeError, match="split"):
            attention(*case[:4], packed((1,), (1, 2, 900))[4])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
