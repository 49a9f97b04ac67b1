import pytest
import torch
from attention_cases import HEADS, packed, plan_of, written_out

from smarttrim_mm.attention import adaptive, bucketed
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
    ("lengths", "heads", "most", "way"),
    [
        (((1, 2, 3), (1, 2, 3)), None, 2**40, "bucketed"),  # little work
        (((1, 2, 3), (1, 2, 3)), None, 0, "alone"),  # much work
        (((3, 3, 3), (3, 3, 3)), None, 0, "bucketed"),  # nothing to pad
        (((3, 3, 3), (3, 3, 3)), "some", 0, "alone"),  # of other heads each
        (((3,), (2,)), None, 2**40, "alone"),  # one sequence
    ],
)
def test_ways(attention, monkeypatch, lengths, heads, most, way):
    monkeypatch.setattr(adaptive, "_LOOP_MULTIPLY_ADDS", most)
    case = packed(*lengths)
    heads = plan_of(HEADS[heads]) if heads else None
    out, _ = attention(*case, heads)
    assert attention.ways == [way]
    torch.testing.assert_close(out, written_out(*case, heads))


def test_little_work_is_done_by_one_thread(monkeypatch):
    host, used = bucketed.scaled_dot_product_attention, []

    def attend(*args, **kwargs):
        used.append(torch.get_num_threads())
        return host(*args, **kwargs)

    monkeypatch.setattr(bucketed, "scaled_dot_product_attention", attend)
    attention, case = AdaptiveSDPA(), packed(*UNEQUAL)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        attention(*case)
        monkeypatch.setattr(adaptive, "_ONE_THREAD_MULTIPLY_ADDS", 100)
        attention(*case)
        assert used == [1, 2] and torch.get_num_threads() == 2
        monkeypatch.setattr(adaptive, "_ONE_THREAD_MULTIPLY_ADDS", 2**40)
        with pytest.raises(IndexError):
            attention(*case[:4], packed((1,), (1, 2, 900))[4])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
