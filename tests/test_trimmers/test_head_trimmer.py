import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from smarttrim_mm.testing import count_multiply_adds
from smarttrim_mm.trimmers.head_trimmer import HeadTrimmer

GUIDES = {"text": torch.randn(3, 16), "image": torch.randn(3, 24)}


def make(**changes):
    return HeadTrimmer(**{"heads": 4, "guides": {"text": 16, "image": 24}, **changes})


def test_logits():
    trimmer = make(stable_init=False)
    both = torch.cat([layer_norm(GUIDES["text"], (16,)), layer_norm(GUIDES["image"], (24,))], -1)
    logits = trimmer(GUIDES)
    torch.testing.assert_close(logits, trimmer.fc2(gelu(trimmer.fc1(both))))
    assert logits.shape == (3, 4) and logits.dtype == torch.float32


def test_it_reads_the_guides_that_it_serves():
    other = {**GUIDES, "image": torch.randn(3, 24)}
    assert not torch.equal(make(stable_init=False)(GUIDES), make(stable_init=False)(other))
    alone = make(guides={"text": 16}, stable_init=False)
    assert torch.equal(alone(GUIDES), alone(other))


def test_a_stable_start_keeps_every_head_and_passes_gradients():
    trimmer = make()
    logits = trimmer(GUIDES)
    assert torch.equal(logits, torch.full((3, 4), 5.0))
    (logits * torch.randn(3, 4)).sum().backward()
    assert trimmer.fc2.weight.grad.any() and trimmer.fc2.bias.grad.any()
    assert torch.equal(make(keep_bias=1.5)(GUIDES), torch.full((3, 4), 1.5))
    assert make(stable_init=False)(GUIDES).abs().max() < 2


@pytest.mark.parametrize(("hidden", "expected"), [(None, 16), (5, 5)])
def test_compute(hidden, expected):
    trimmer = make(hidden=hidden)
    assert trimmer.multiply_adds() == 40 * expected + 4 * expected
    _, counted = count_multiply_adds(lambda: trimmer(GUIDES))
    assert counted == 3 * trimmer.multiply_adds()


def test_the_hidden_width_grows_with_the_guides():
    assert make(guides={"text": 768, "image": 768}).fc1.out_features == 192
