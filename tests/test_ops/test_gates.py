import math

import pytest
import torch

from smarttrim_mm.ops.gates import gumbel_keep, keep_at_least, straight_through, threshold_keep
from smarttrim_mm.structures import TokenStream


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_decisions_are_hard_and_as_likely_as_their_logits_say(temperature):
    logits = torch.tensor([-2.0, 0.0, 1.0, 5.0]).repeat(20000, 1)
    keep = gumbel_keep(logits, temperature)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(keep.mean(0), torch.sigmoid(logits[0]), atol=0.01, rtol=0)


def test_the_temperature_changes_gradients_and_no_decision():
    results = []
    for temperature in (0.5, 2.0):
        torch.manual_seed(0)
        logits = torch.linspace(-3, 3, 500, requires_grad=True)
        keep = gumbel_keep(logits, temperature)
        keep.sum().backward()
        results.append((keep.detach(), logits.grad))
    (sharp, sharp_gradient), (soft, soft_gradient) = results
    assert torch.equal(sharp, soft)
    assert not torch.allclose(sharp_gradient, soft_gradient)


def test_the_gradient_is_that_of_the_soft_sample(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))  # no noise: logit(0.5) is 0
    logits = torch.tensor([2 * math.log(3.0), -2 * math.log(3.0)], requires_grad=True)
    keep = gumbel_keep(logits, 2.0)
    keep.sum().backward()
    assert keep.tolist() == [1.0, 0.0]
    torch.testing.assert_close(logits.grad, torch.full((2,), 0.75 * 0.25 / 2))  # sigmoid' (log 3) / temperature


def test_extreme_noise_stays_finite(monkeypatch):
    for value in (0.0, 1.0):
        monkeypatch.setattr(torch, "rand_like", lambda x, v=value: torch.full_like(x, v))
        logits = torch.tensor([0.0, 100.0, -100.0], requires_grad=True)
        gumbel_keep(logits, 0.01).sum().backward()
        assert torch.isfinite(logits.grad).all()


def test_noise_can_be_scaled_down_to_none():
    logits = torch.tensor([-1.0, -1e-3, 1e-3, 1.0]).repeat(5000, 1)
    assert torch.equal(gumbel_keep(logits, 1.0, noise=0.0), (logits > 0).float())
    sampled, calmer = (gumbel_keep(logits, 1.0, noise).mean(0) for noise in (1.0, 0.5))
    torch.testing.assert_close(sampled[3], torch.sigmoid(torch.tensor(1.0)), atol=0.02, rtol=0)
    torch.testing.assert_close(calmer[3], torch.sigmoid(torch.tensor(2.0)), atol=0.02, rtol=0)


def test_half_precision_is_decided_in_single():
    assert gumbel_keep(torch.zeros(3, dtype=torch.bfloat16), 1.0).dtype == torch.float32


def test_the_threshold_is_a_probability():
    logits = torch.tensor([-1.0, 0.0, math.log(9) - 1e-3, math.log(9) + 1e-3])
    assert threshold_keep(logits, 0.5).tolist() == [False, True, True, True]
    assert threshold_keep(logits, 0.9).tolist() == [False, False, False, True]
    assert threshold_keep(logits, 0.1).tolist() == [True, True, True, True]


def test_gates_are_computed_in_single_precision_under_autocast():
    """Logits of half precision give the decisions and gradients of the same numbers in fp32."""
    results = []
    for low in (True, False):
        torch.manual_seed(0)
        logits = torch.linspace(-6, 6, 999).bfloat16()
        logits = (logits if low else logits.float()).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            keep = gumbel_keep(logits, 0.7)
        assert keep.dtype == torch.float32 and set(keep.unique().tolist()) == {0.0, 1.0}
        keep.sum().backward()
        results.append((keep.detach(), logits.grad))
    (keep, gradient), (expected, precise) = results
    assert torch.equal(keep, expected)
    assert torch.equal(gradient, precise.bfloat16())


def stream_of(kept, protected=((True, False, False, False),)):
    """A padded stream of four tokens an instance, ``kept`` of which are still there."""
    kept, protected = torch.tensor(kept), torch.tensor(protected)
    stream = TokenStream.start(torch.zeros(*kept.shape, 1), ids=torch.arange(len(kept)), special=protected.expand(kept.shape))
    return stream.select(kept)


LOGITS = torch.tensor([[-9.0, -1.0, -3.0, -2.0]])


@pytest.mark.parametrize(
    ("least", "kept"),
    [
        (1, [True, False, False, False]),  # the protected one
        (2, [True, True, False, False]),
        (3, [True, True, False, True]),
        (9, [True, True, True, True]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_best_tokens_are_kept_where_there_would_be_too_few(least, kept, packed):
    stream = stream_of([[True] * 4])
    stream, logits = (stream.pack(), LOGITS.flatten()) if packed else (stream, LOGITS)
    keep = keep_at_least(torch.zeros_like(logits, dtype=torch.bool), logits, stream.layout, least)
    assert stream.select(keep).layout.kept_grid()[0].tolist() == kept


def test_an_instance_that_keeps_enough_is_left_alone():
    """Even where the sample has drawn others than the best; and dropped tokens stay dropped."""
    logits = LOGITS.repeat(3, 1)
    keep = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    stream = stream_of([[True] * 4, [True] * 4, [True, False, True, False]])
    assert keep_at_least(keep, logits, stream.layout, 2).tolist() == [[0, 0, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0]]


def test_a_token_that_is_kept_as_one_of_too_few_passes_its_gradient(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))
    logits = LOGITS.clone().requires_grad_()
    keep = keep_at_least(gumbel_keep(logits, 1.0), logits, stream_of([[True] * 4]).layout, 2)
    keep.sum().backward()
    assert keep.tolist() == [[1, 1, 0, 0]] and (logits.grad > 0).all()


def test_hard_decisions_with_the_gradient_of_soft_ones():
    logits = torch.linspace(-30, 30, 1001, requires_grad=True)
    soft = logits.sigmoid()
    hard = straight_through(soft, logits >= 0)
    assert torch.equal(hard, (logits >= 0).float())  # exactly 0 or 1
    hard.sum().backward()
    torch.testing.assert_close(logits.grad, (soft * (1 - soft)).detach())
