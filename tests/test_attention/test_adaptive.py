import pytest
import torch
from attention_cases import HEADS, packed, plan_of, written_out

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
