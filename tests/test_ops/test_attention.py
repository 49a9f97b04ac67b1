import math

import pytest
import torch

from smarttrim_mm.ops import attention
from smarttrim_mm.ops.attention import gated_attention, key_bias, padded_attention


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
    torch.testing.assert_close(padded_attention(q, k, v, gate, 0.0, key_bias(gate)), exact)
    every = torch.ones_like(gate)
    torch.testing.assert_close(padded_attention(q, k, v, every, 0.0, None), gated_attention(q, k, v, every))
    monkeypatch.setattr(attention, "gated_attention", lambda *args: "gated")
    assert padded_attention(q, k, v, gate.requires_grad_(), 0.0, key_bias(gate)) == "gated"
