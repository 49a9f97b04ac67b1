import pytest
import torch
from attention_cases import HEADS, WIDTH, least_work, packed, plan_of, written_out

from smarttrim_mm.attention import bucketed
from smarttrim_mm.attention.bucketed import BucketedSDPA


@pytest.fixture(autouse=True)
def _fresh_plans():
    """What is cached under one test's limits must not serve the next."""
    for function in (bucketed._pad, bucketed._plan):
        function.cache_clear()
    yield
    for function in (bucketed._pad, bucketed._plan):
        function.cache_clear()


@pytest.fixture(params=["one call", "buckets"])
def calls(request, monkeypatch):
    """Lengths here are padded to multiples of 4."""
    monkeypatch.setattr(bucketed, "_PADDED_MULTIPLE", 4)
    monkeypatch.setattr(bucketed, "_PADDING_PER_BUCKET", 1 if request.param == "buckets" else 2**40)
    return request.param


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("lengths", [((3, 1, 2), (2, 5, 1)), ((3, 3, 3), (3, 3, 3)), ((1, 2, 1), (4, 4, 4))])
def test_padded_calls(calls, heads, lengths):
    case = packed(*lengths)
    heads = plan_of(heads)
    out, executed = BucketedSDPA()(*case, heads)
    torch.testing.assert_close(out, written_out(*case, heads))
    if calls == "buckets":  # with three instances and no limit every bucket holds one: nothing is padded
        assert executed == least_work(case[0], *case[3:], heads)
    else:
        n, m = (max(of) if len(set(of)) == 1 else -(-max(of) // 4) * 4 for of in lengths)
        assert executed == 2 * WIDTH * n * m * (12 if heads is None else heads.pairs)


def test_buckets_of_several_instances(monkeypatch):
    """Sorted, padded, attended and put back in their order, with heads off."""
    case = packed((5, 1, 7, 2, 6, 3, 1, 4, 9), (2, 8, 1, 5, 5, 3, 9, 1, 4))
    heads = plan_of((torch.rand(9, 4) > 0.4).tolist())
    monkeypatch.setattr(bucketed, "_PADDED_MULTIPLE", 1)
    most = BucketedSDPA()(*case, heads)[1]
    monkeypatch.setattr(bucketed, "_PADDING_PER_BUCKET", 2 * 4 * 8 * 100)
    out, executed = BucketedSDPA()(*case, heads)
    torch.testing.assert_close(out, written_out(*case, heads))
    assert least_work(case[0], *case[3:], heads) < executed < most


def test_sequences_of_one_length_are_attended_in_one_call(monkeypatch):
    """Nothing is copied and no mask is made, however long they are."""
    calls = []
    host = bucketed.scaled_dot_product_attention
    monkeypatch.setattr(
        bucketed, "scaled_dot_product_attention", lambda *args, **kwargs: calls.append(kwargs) or host(*args, **kwargs)
    )
    q, k, v, of_q, of_k = packed((5, 5, 5), (5, 5, 5))
    out, executed = BucketedSDPA()(q, k, v, of_q, of_k)
    assert calls == [{"attn_mask": None}]
    assert executed == 2 * 3 * 4 * 5 * 5 * 8
    q, k, v = (t.view(3, 5, 4, 8).transpose(1, 2) for t in (q, k, v))
    torch.testing.assert_close(out, host(q, k, v).transpose(1, 2).flatten(0, 1))
