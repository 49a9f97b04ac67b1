import pytest
import torch

from smarttrim_mm.attention.base import HeadPlan, Sequences
from smarttrim_mm.layers import packed_heads
from smarttrim_mm.layers.run_layer import run_layer
from smarttrim_mm.structures import TokenStream

HEADS = torch.tensor([[True, False, True, True], [False] * 4, [False, True, False, False]])
LINEARS = 2 * 16 * 24  # multiply-adds of a token in the MLP of the fixture


def run(step, tokens, policy):
    stream = TokenStream.start(tokens, ids=torch.arange(len(tokens))).pack()
    out, record = run_layer(step, {"words": stream}, policy)
    return out["words"].x, record.executed


def of_heads(on, rows=208):
    """Multiply-adds of heads on as many tokens, projections and scores."""
    return on * 4 * (4 * rows * 16 + 2 * rows * rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("row", [0, 1], ids=["some heads", "no head"])
@torch.inference_mode()
def test_an_instance_alone_has_its_own_heads_projected_in_any_precision(encoder_layer, fixed, dtype, row):
    _, step = encoder_layer(True)
    tokens = torch.randn(1, 208, 16)
    policy = fixed(heads={"words.self": HEADS[row : row + 1]})
    exact, executed = run(step, tokens, policy)
    with torch.autocast("cpu", dtype):
        rounded, again = run(step, tokens, policy)
    assert executed == again == 208 * LINEARS + of_heads(HEADS[row].sum().item())
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0, check_dtype=False)


@torch.inference_mode()
def test_in_a_batch_instances_are_projected_apart_where_that_costs_less(encoder_layer, fixed, monkeypatch):
    _, step = encoder_layer(True)
    tokens, policy = torch.randn(3, 208, 16), fixed(heads={"words.self": HEADS})
    apart, least = run(step, tokens, policy)
    assert least == 3 * 208 * LINEARS + of_heads(3) + of_heads(1)
    monkeypatch.setattr(packed_heads, "_alone_pays", lambda *_: False)
    together, most = run(step, tokens, policy)
    assert most == 3 * 208 * LINEARS + 3 * 4 * 4 * 4 * 208 * 16 + 4 * 4 * 2 * 208 * 208  # all projected, four attend
    torch.testing.assert_close(together, apart)


@torch.inference_mode()
def test_heads_that_no_instance_needs_are_not_projected(encoder_layer, fixed):
    _, step = encoder_layer(False)
    tokens = torch.randn(2, 208, 16)
    heads = torch.tensor([[True, False, False, True]] * 2)
    for dtype in (None, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            executed = run(step, tokens, fixed(heads={"words.self": heads}))[1]
        assert executed == 2 * (208 * LINEARS + of_heads(2)), dtype


@pytest.mark.parametrize(
    ("on", "lengths", "pays"),
    [
        (((0,), (1,)), (300, 300), True),
        (((0, 1, 2), (1, 2, 3)), (300, 300), True),
        (((0, 1, 2), (1, 2, 3)), (20, 20), False),  # as much goes into reading the weight twice
        (((0, 1, 2, 3), (0, 1, 2)), (100, 100), False),
        (((0, 1, 2, 3), (0,)), (10, 300), True),
    ],
)
def test_when_it_costs_less(on, lengths, pays):
    plan, sequences = HeadPlan(torch.zeros(2, 4, dtype=torch.bool), on), Sequences.of(lengths)
    assert packed_heads._alone_pays(plan, sequences, sequences) is pays


def test_kept_heads_as_runs():
    assert packed_heads._runs((0, 1, 4, 6, 7)) == [slice(0, 2), slice(4, 5), slice(6, 8)]
    assert packed_heads._runs((3,)) == [slice(3, 4)]
