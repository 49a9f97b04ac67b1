import math

import pytest
import torch

from smarttrim_mm.ops import attention
from smarttrim_mm.ops.attention import gated_attention, packed_attention, padded_attention


def softmax_over_kept(q, k, v, keep):
    """[H, N, d] queries over the kept of [H, M, d] keys."""
    scores = q @ k[:, keep].transpose(1, 2) / math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v[:, keep]


@pytest.fixture
def padded():
    q, k, v = torch.randn(3, 2, 4, 5, 8).unbind(0)
    gate = torch.tensor([[1.0, 0, 1, 1, 0], [1.0, 1, 1, 0, 0]])
    return q, k, v, gate


def test_gated_attention_by_hand():
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([0.0, math.log(3)]).view(1, 1, 2, 1)
    v = torch.tensor([1.0, 5.0]).view(1, 1, 2, 1)
    assert gated_attention(q, k, v, torch.ones(1, 2)).item() == pytest.approx(4)  # (1 * 1 + 3 * 5) / 4
    gate = torch.tensor([[1.0, 0.0]], requires_grad=True)
    out = gated_attention(q, k, v, gate)
    out.sum().backward()
    assert out.item() == pytest.approx(1)
    torch.testing.assert_close(gate.grad, torch.tensor([[0.0, 12.0]]))  # e_j / sum(e m) * (v_j - out)


def test_gated_attention_is_softmax_over_kept_keys(padded):
    q, k, v, gate = padded
    out = gated_attention(q, k, v, gate)
    for b in range(2):
        torch.testing.assert_close(out[b], softmax_over_kept(q[b], k[b], v[b], gate[b] > 0))


def test_gated_attention_passes_the_gradient_of_its_formula(padded):
    q, k, v, gate = padded
    gate.requires_grad_()
    weight = torch.randn_like(q)
    (gated_attention(q, k, v, gate) * weight).sum().backward()
    step = 1e-3
    for b, j in ((0, 1), (0, 2), (1, 4)):
        moved = gate.detach().clone()
        moved[b, j] += step
        scores = torch.exp(q @ k.transpose(-2, -1) / math.sqrt(8)) * moved[:, None, None]
        out = (scores / scores.sum(-1, keepdim=True)) @ v
        slope = ((out - gated_attention(q, k, v, gate.detach())) * weight).sum() / step
        assert gate.grad[b, j].item() == pytest.approx(slope.item(), rel=0.02, abs=0.02)


@pytest.mark.parametrize("block", [1, 60, 2**21], ids=["a head", "two heads", "all"])
def test_gradients_of_gated_attention_are_those_of_its_formula(padded, block, monkeypatch):
    """By autograd through exp(s) m / sum exp(s) m in double precision; however many heads go into a block."""
    monkeypatch.setattr(attention, "_SCORES_PER_BLOCK", block)
    weight = torch.randn(2, 4, 5, 8)
    own = [t.clone().requires_grad_() for t in padded]
    (gated_attention(*own) * weight).sum().backward()
    exact = [t.double().requires_grad_() for t in padded]
    q, k, v, gate = exact
    weights = torch.exp(q @ k.transpose(-2, -1) / math.sqrt(8)) * gate[:, None, None]
    (weights @ v / weights.sum(-1, keepdim=True) * weight).sum().backward()
    for name, one, other in zip(["q", "k", "v", "gate"], own, exact, strict=True):
        torch.testing.assert_close(one.grad, other.grad.float(), atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_no_weights_of_gated_attention_wait_for_the_backward_pass(padded):
    """What is saved grows with the tokens, not with their pairs."""
    q, k, v, gate = (t.clone().requires_grad_() for t in padded)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        gated_attention(q, k, v, gate)
    assert sum(sizes) == 4 * q.numel() + gate.numel()  # q, k, v, the output, the gates


def test_a_dropped_key_that_scores_above_all_others_stays_finite():
    q, k = torch.full((1, 1, 1, 1), 100.0), torch.tensor([-10.0, 10.0]).view(1, 1, 2, 1)
    v = torch.tensor([1.0, 5.0]).view(1, 1, 2, 1)
    gate = torch.tensor([[1.0, 0.0]], requires_grad=True)
    out = gated_attention(q, k, v, gate)
    out.sum().backward()
    assert out.item() == 1 and torch.isfinite(gate.grad).all() and gate.grad[0, 1] > 0


def test_dropout_on_gated_weights(padded):
    q, k, v, gate = padded
    assert not gated_attention(q, k, v, gate, dropout_p=1.0).any()
    mean = torch.stack([gated_attention(q, k, v, gate, dropout_p=0.2) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(mean, gated_attention(q, k, v, gate), atol=0.08, rtol=0)


def test_padded_attention_takes_the_cheapest_exact_path(padded, monkeypatch):
    q, k, v, gate = padded
    exact = gated_attention(q, k, v, gate)
    torch.testing.assert_close(padded_attention(q, k, v, gate, 0.0, whole=False), exact)
    every = torch.ones_like(gate)
    torch.testing.assert_close(padded_attention(q, k, v, every, 0.0, whole=True), gated_attention(q, k, v, every))
    monkeypatch.setattr(attention, "gated_attention", lambda *args: "gated")
    assert padded_attention(q, k, v, gate.requires_grad_(), 0.0, whole=False) == "gated"


HEADS = {
    "all": None,
    "some": torch.tensor([[True, False, True, False], [False, False, False, True], [True, True, True, True]]),
    "none of one": torch.tensor([[False] * 4, [True, False, False, False], [True] * 4]),
    "none at all": torch.zeros(3, 4, dtype=torch.bool),
}


@pytest.fixture(autouse=True)
def _fresh_plans():
    """What is cached under one test's limits must not serve the next."""
    for function in (attention._pad, attention._plan):
        function.cache_clear()
    yield
    for function in (attention._pad, attention._plan):
        function.cache_clear()


@pytest.fixture(params=["each", "padded", "buckets"])
def path(request, monkeypatch):
    """One of the ways in which packed sequences are attended; lengths here are padded to multiples of 4."""
    monkeypatch.setattr(attention, "_PADDED_MULTIPLE", 4)
    monkeypatch.setattr(attention, "_LOOP_MULTIPLY_ADDS", 0 if request.param == "each" else 2**40)
    monkeypatch.setattr(attention, "_PADDING_PER_BUCKET", 1 if request.param == "buckets" else 2**40)
    return request.param


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("lengths", [((3, 1, 2), (2, 5, 1)), ((3, 3, 3), (3, 3, 3)), ((1, 2, 1), (4, 4, 4))])
def test_packed_attention(path, heads, lengths):
    lengths_q, lengths_k = lengths
    q, k, v = torch.randn(sum(lengths_q), 4, 8), torch.randn(sum(lengths_k), 4, 8), torch.randn(sum(lengths_k), 4, 8)
    out, executed = packed_attention(q, k, v, lengths_q, lengths_k, heads)
    on = torch.ones(3, 4, dtype=torch.bool) if heads is None else heads
    begin_q = begin_k = 0
    for b, (n, m) in enumerate(zip(lengths_q, lengths_k, strict=True)):
        one_q, one_k, one_v = q[begin_q : begin_q + n], k[begin_k : begin_k + m], v[begin_k : begin_k + m]
        expected = softmax_over_kept(*(t.transpose(0, 1) for t in (one_q, one_k, one_v)), torch.ones(m, dtype=torch.bool))
        expected = expected.transpose(0, 1) * on[b, None, :, None]
        torch.testing.assert_close(out[begin_q : begin_q + n], expected)
        begin_q, begin_k = begin_q + n, begin_k + m
    # with three instances and no limit every bucket holds one: nothing is padded
    n, m = (max(of) if len(set(of)) == 1 else -(-max(of) // 4) * 4 for of in lengths)
    pairs = [on[b].sum().item() * (n * m if path == "padded" else own[0] * own[1])
             for b, own in enumerate(zip(*lengths, strict=True))]  # fmt: skip
    assert executed == 2 * 8 * sum(pairs)


def test_views_of_a_fused_projection_may_be_attended():
    """q, k and v as chunks of one tensor, whose strides are not those of a tensor of their own."""
    q, k, v = torch.randn(6, 3 * 4 * 8).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (4, 8)) for t in (q, k, v))
    heads = HEADS["some"]
    out, _ = packed_attention(q, k, v, (1, 2, 3), (1, 2, 3), heads)
    same, _ = packed_attention(q.contiguous(), k.contiguous(), v.contiguous(), (1, 2, 3), (1, 2, 3), heads)
    torch.testing.assert_close(out, same)


def test_buckets_of_several_instances(monkeypatch):
    """Sorted, padded, attended and put back in their order, with heads off."""
    lengths_q, lengths_k = (5, 1, 7, 2, 6, 3, 1, 4, 9), (2, 8, 1, 5, 5, 3, 9, 1, 4)
    q = torch.randn(sum(lengths_q), 4, 8)
    k, v = torch.randn(sum(lengths_k), 4, 8), torch.randn(sum(lengths_k), 4, 8)
    heads = torch.rand(9, 4) > 0.4
    monkeypatch.setattr(attention, "_PADDED_MULTIPLE", 1)
    monkeypatch.setattr(attention, "_LOOP_MULTIPLY_ADDS", 0)
    exact, least = packed_attention(q, k, v, lengths_q, lengths_k, heads)
    monkeypatch.setattr(attention, "_LOOP_MULTIPLY_ADDS", 2**40)
    most = packed_attention(q, k, v, lengths_q, lengths_k, heads)[1]
    monkeypatch.setattr(attention, "_PADDING_PER_BUCKET", 2 * 4 * 8 * 100)
    out, executed = packed_attention(q, k, v, lengths_q, lengths_k, heads)
    torch.testing.assert_close(out, exact)
    assert least < executed < most


def test_sequences_of_one_length_are_attended_in_one_call(monkeypatch):
    """Nothing is copied and no mask is made, however long they are."""
    calls = []
    host = attention.scaled_dot_product_attention
    monkeypatch.setattr(attention, "_LOOP_MULTIPLY_ADDS", 0)
    monkeypatch.setattr(
        attention, "scaled_dot_product_attention", lambda *args, **kwargs: calls.append(kwargs) or host(*args, **kwargs)
    )
    q, k, v = torch.randn(3, 15, 4, 8).unbind(0)
    out, executed = packed_attention(q, k, v, (5, 5, 5), (5, 5, 5))
    assert calls == [{"attn_mask": None}]
    assert executed == 2 * 3 * 4 * 5 * 5 * 8
    q, k, v = (t.view(3, 5, 4, 8).transpose(1, 2) for t in (q, k, v))
    torch.testing.assert_close(out, host(q, k, v).transpose(1, 2).flatten(0, 1))


@pytest.mark.parametrize("on", [[0], [3], [0, 1], [1, 3], [0, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2, 3]])
def test_kept_heads_as_a_slice(on):
    chosen = attention._as_slice(on)
    assert torch.arange(4)[chosen].tolist() == on
    assert isinstance(chosen, slice) == (on not in ([0, 1, 3], [0, 2, 3]))


def test_little_work_is_done_by_one_thread(monkeypatch):
    host, used = attention.scaled_dot_product_attention, []

    def attend(*args, **kwargs):
        used.append(torch.get_num_threads())
        return host(*args, **kwargs)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    qkv = torch.randn(3, 6, 4, 8).unbind(0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        packed_attention(*qkv, (1, 2, 3), (1, 2, 3))
        monkeypatch.setattr(attention, "_ONE_THREAD_MULTIPLY_ADDS", 100)
        packed_attention(*qkv, (1, 2, 3), (1, 2, 3))
        assert used == [1, 2] and torch.get_num_threads() == 2
        monkeypatch.setattr(attention, "_ONE_THREAD_MULTIPLY_ADDS", 2**40)
        with pytest.raises(IndexError):
            packed_attention(*qkv, (1, 2, 3), (1, 2, 900))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_packed_attention_passes_gradients(path):
    q, k, v = (torch.randn(5, 4, 8, requires_grad=True) for _ in range(3))
    packed_attention(q, k, v, (1, 2, 2), (1, 2, 2), HEADS["some"])[0].square().sum().backward()
    for tensor in (q, k, v):
        assert torch.isfinite(tensor.grad).all() and tensor.grad.any()
    assert not q.grad[0, 1].any()  # its head is off
