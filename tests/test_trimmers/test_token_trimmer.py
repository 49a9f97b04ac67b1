import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from smarttrim_mm.registry import TRIMMERS
from smarttrim_mm.structures import TokenStream
from smarttrim_mm.testing import count_multiply_adds, excite
from smarttrim_mm.trimmers.token_trimmer import TokenTrimmer

WIDTHS = {"image": 24, "text": 16}


def make(**changes):
    return TokenTrimmer(**{"width": 24, "own": "image", "guides": WIDTHS, **changes})


@pytest.fixture
def stream():
    return TokenStream.start(torch.randn(2, 5, 24), ids=torch.arange(2))


@pytest.fixture
def guides(stream):
    return {"image": stream.guide(), "text": torch.randn(2, 16)}


def test_logits_are_the_sum_of_the_scores(stream, guides):
    """Local MLP, and the bilinear similarity of each token with both guides, written out in full."""
    trimmer = make(hidden=6, rank=4)
    excite(trimmer)
    x = layer_norm(stream.x, (24,))
    expected = trimmer.bias + trimmer.fc2(gelu(trimmer.fc1(x))).squeeze(-1)
    for name, guide in guides.items():
        query = layer_norm(guide, guide.shape[-1:]) @ trimmer.query[name].weight.T  # [B, rank]
        expected = expected + (trimmer.key(x) * query.unsqueeze(1)).sum(-1) / math.sqrt(4)
    logits = trimmer(stream, guides)
    torch.testing.assert_close(logits, expected)
    assert logits.shape == (2, 5) and logits.dtype == torch.float32


def test_padded_and_packed_score_alike(stream, guides):
    trimmer = make(stable_init=False)
    torch.testing.assert_close(trimmer(stream.pack(), guides), trimmer(stream, guides).flatten())


@pytest.mark.parametrize("scores", [["local"], ["self"], ["cross"], ["self", "cross"], ["local", "self", "cross"]])
def test_each_score_reads_what_it_says(stream, guides, scores):
    trimmer = make(scores=scores, stable_init=False)
    logits = trimmer(stream, guides)
    other_self = trimmer(stream, {**guides, "image": torch.randn(2, 24)})
    other_cross = trimmer(stream, {**guides, "text": torch.randn(2, 16)})
    assert torch.equal(other_self, logits) == ("self" not in scores)
    assert torch.equal(other_cross, logits) == ("cross" not in scores)
    assert (trimmer.fc1 is not None) == (trimmer.fc2 is not None) == ("local" in scores)
    assert set(trimmer.query) == {name for name, score in (("image", "self"), ("text", "cross")) if score in scores}
    assert (trimmer.key is None) == (scores == ["local"])


@pytest.mark.parametrize("scores", [["local"], ["self"], ["local", "self", "cross"]])
def test_a_stable_start_keeps_everything(stream, guides, scores):
    assert torch.equal(make(scores=scores)(stream, guides), torch.full((2, 5), 5.0))
    assert torch.equal(make(scores=scores, keep_bias=2.0)(stream, guides), torch.full((2, 5), 2.0))
    loose = make(scores=scores, stable_init=False, keep_bias=2.0)(stream, guides)
    assert loose.abs().max() < 2 and loose.std() > 0


def test_a_stable_start_passes_gradients(stream, guides):
    """The last map of each score starts at zero, and those before it do not: it moves at the first step."""
    trimmer = make()
    (trimmer(stream, guides) * torch.randn(2, 5)).sum().backward()
    for parameter in (trimmer.bias, trimmer.fc2.weight, *trimmer.query.parameters()):
        assert parameter.grad.any()


def test_sizes():
    trimmer = make(width=256, guides={"image": 256, "text": 512})
    assert trimmer.fc1.out_features == trimmer.key.out_features == 32
    assert make().fc1.out_features == make().key.out_features == 16  # at least
    assert make(hidden=3, rank=5).fc1.out_features == 3
    assert make(hidden=3, rank=5).key.out_features == 5


@pytest.mark.parametrize("scores", [["local"], ["self"], ["cross"], ["local", "self", "cross"]])
def test_multiply_adds(stream, guides, scores):
    trimmer = make(scores=scores, hidden=6, rank=4)
    cost = trimmer.multiply_adds(torch.tensor([5.0, 3.0])).tolist()
    token, instance = 6 * 24 + 6 if "local" in scores else 0, 0
    if scores != ["local"]:
        token += 24
        instance = 4 * 24 + sum(4 * WIDTHS[name] for name, score in (("image", "self"), ("text", "cross")) if score in scores)
    assert cost == [5 * token + instance, 3 * token + instance]
    _, counted = count_multiply_adds(lambda: trimmer(stream, guides))
    products = 2 * 5 * 24 if scores != ["local"] else 0  # by element: multiplied here, not counted there
    assert float(trimmer.multiply_adds(torch.tensor([5.0, 5.0])).sum()) == counted + products


def test_a_score_without_its_guide_is_left_out():
    trimmer = make(guides={"image": 24})
    assert set(trimmer.query) == {"image"}


def test_nothing_to_score():
    with pytest.raises(ValueError, match=r"scores is \['cross'\], and no such guide.*'image'.*text_first"):
        make(guides={"image": 24}, scores=["cross"])
    with pytest.raises(ValueError, match=r"scores is \[\]"):
        make(scores=[])


def test_an_unknown_score():
    with pytest.raises(ValueError, match=r"scores holds \['global'\]; expected some of \['local', 'self', 'cross'\]"):
        make(scores=["local", "global"])


def test_it_is_found_by_name():
    assert isinstance(TRIMMERS.build({"type": "TokenTrimmer", "width": 8, "own": "a", "guides": {"a": 8}}), TokenTrimmer)
