from dataclasses import replace

import pytest
import torch

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.structures import TokenStream

IDS = torch.tensor([7, 8])
VALID = torch.tensor([[True, True, True, True], [True, True, False, False]])
SPECIAL = torch.tensor([[True, False, False, True], [True, True, True, False]])


@pytest.fixture
def stream():
    """Two instances of 4 and 2 tokens; token n of instance b is 10 b + n."""
    x = torch.tensor([[0.0, 1, 2, 3], [10, 11, 12, 13]]).unsqueeze(-1)
    return TokenStream.start(x, ids=IDS, valid=VALID, special=SPECIAL)


def test_start(stream):
    layout = stream.layout
    assert layout.full().tolist() == layout.counts().tolist() == [4, 2]
    assert layout.protected.tolist() == [[True, False, False, True], [True, True, False, False]]  # no padding
    assert layout.floor().tolist() == [2, 2]
    assert layout.held().tolist() == [4, 4]
    assert not layout.whole
    assert TokenStream.start(stream.x, ids=IDS).layout.whole


def test_the_guide_must_come_first(stream):
    with pytest.raises(ValueError, match="guide_index is 3; expected 0"):
        TokenStream.start(stream.x, ids=IDS, guide_index=3)


def test_pack(stream):
    packed = stream.pack()
    assert packed.x.squeeze(1).tolist() == [0, 1, 2, 3, 10, 11]
    assert packed.layout.lengths == (4, 2)
    assert packed.layout.cu_seqlens.tolist() == [0, 4, 6]
    assert packed.layout.source.tolist() == [0, 1, 2, 3, 0, 1]
    assert packed.pack() is packed


def test_padded_and_packed_layouts_say_the_same(stream):
    keep = torch.tensor([[False, True, False, False], [False, False, True, True]])
    padded = stream.select(keep)
    packed = stream.pack()
    packed = packed.select(packed.layout.from_grid(keep))
    expected = [[True, True, False, True], [True, True, False, False]]  # protected ones stay, padding never appears
    for one in (padded, packed):
        assert one.layout.kept_grid().tolist() == expected
        assert one.layout.counts().tolist() == [3, 2]
        assert one.layout.full().tolist() == [4, 2]
        assert one.layout.floor().tolist() == [2, 2]
        assert one.guide().tolist() == [[0], [10]]
        tokens, mask = one.pad()
        assert tokens.squeeze(-1).tolist() == [[0, 1, 3], [10, 11, 0]]
        assert mask.tolist() == [[True, True, True], [True, True, False]]
    assert packed.layout.held().tolist() == [3, 2] and padded.layout.held().tolist() == [4, 4]
    values = torch.arange(8.0).view(2, 4)
    grids = [one.layout.to_grid(one.layout.from_grid(values), -1.0) for one in (padded, packed)]
    assert torch.equal(*grids) and grids[0].tolist() == [[0, 1, -1, 3], [4, 5, -1, -1]]


def test_dropped_tokens_stay_dropped(stream):
    nothing, everything = torch.zeros(2, 4), torch.ones(2, 4)
    assert stream.select(nothing).select(everything).layout.counts().tolist() == [2, 2]
    packed = stream.pack()
    packed = packed.select(torch.zeros(6))
    assert packed.select(torch.ones(4)).layout.counts().tolist() == [2, 2]


def test_only_decisions_with_an_effect_receive_gradients(stream):
    keep = torch.tensor([[0.0, 1, 0, 0], [0, 1, 1, 1]], requires_grad=True)
    stream.select(keep).layout.counts().sum().backward()
    assert keep.grad.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]  # neither protected tokens nor padding


def test_without_a_guide_token_the_kept_ones_speak(stream):
    last = torch.tensor([[False, False, False, True], [True, False, False, False]])
    with pytest.raises(ValueError, match="special protects no token"):
        TokenStream.start(stream.x, ids=IDS, valid=VALID, guide_index=None)
    mean = TokenStream.start(stream.x, ids=IDS, valid=VALID, special=last, guide_index=None)
    keep = torch.tensor([[True, False, False, True], [True, True, True, True]])
    packed = mean.pack()
    for one in (mean.select(keep), packed.select(packed.layout.from_grid(keep))):
        assert one.guide().tolist() == [[1.5], [10.5]]
        assert one.layout.guide_index is None
    assert torch.equal(mean.layout.protected, last & VALID)


def test_means_are_of_what_is_kept_and_marked(stream):
    keep = torch.tensor([[True, True, False, True], [True, True, True, True]])
    packed = stream.pack()
    for one in (stream.select(keep), packed.select(packed.layout.from_grid(keep))):
        free = ~one.layout.protected
        assert one.layout.mean(one.x).tolist() == [[pytest.approx(4 / 3)], [10.5]]  # 0, 1 and 3; 10 and 11, no padding
        assert one.layout.mean(one.x, free).tolist() == [[1.0], [0.0]]  # the second has none that is not protected
        assert one.layout.mean(one.x.bfloat16()).dtype == torch.float32


def test_the_mean_is_differentiable_in_the_gate(stream):
    keep = torch.ones(2, 4, requires_grad=True)
    one = stream.select(keep)
    one.layout.mean(one.x).sum().backward()
    # the mean of 0, 1, 2 and 3 is 1.5: dropping one moves it by (x - 1.5) / 4; protected and padded tokens have no say
    assert keep.grad.tolist() == [[0, -0.125, 0.125, 0], [0, 0, 0, 0]]


def test_expand_repeats_instances(stream):
    index, ids = torch.tensor([1, 0, 1]), torch.tensor([4, 5, 6])
    keep = torch.tensor([[False, True, False, False], [True, True, True, True]])
    cut = stream.select(keep)
    for one in (cut.expand(index, ids), cut.pack().expand(index, ids)):
        assert one.layout.ids.tolist() == [4, 5, 6]
        assert one.layout.counts().tolist() == [2, 3, 2]
        assert one.layout.full().tolist() == [2, 4, 2]
        assert one.layout.floor().tolist() == [2, 2, 2]
        assert one.pad()[0].squeeze(-1).tolist() == [[10, 11, 0], [0, 1, 3], [10, 11, 0]]
        assert one.layout.batch_size == 3
        assert one.guide().tolist() == [[10], [0], [10]]


def test_per_token_spreads_values(stream):
    values = torch.tensor([1.0, 2.0])
    assert (stream.layout.per_token(values) * torch.ones(2, 4)).tolist() == [[1] * 4, [2] * 4]
    assert stream.pack().layout.per_token(values).tolist() == [1, 1, 1, 1, 2, 2]
    alone = TokenStream.start(stream.x[:1], ids=IDS[:1]).pack()
    assert (alone.layout.per_token(values[:1]) * torch.ones(4)).tolist() == [1] * 4


def test_with_ids_and_map(stream):
    other = stream.with_ids(IDS + 1).map(lambda x: 2 * x)
    assert other.layout.ids.tolist() == [8, 9] and torch.equal(other.x, 2 * stream.x)
    assert stream.layout.ids.tolist() == [7, 8]
    assert stream.pack().with_ids(IDS + 1).layout.ids.tolist() == [8, 9]


@pytest.fixture
def inputs():
    return VLMInputs(
        images=torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 4, 4),
        image_index=torch.tensor([1, 0, 1]),
        image_ids=torch.tensor([50, 51]),
        input_ids=torch.tensor([[0, 4, 5, 2], [0, 2, 1, 1], [0, 6, 2, 1]]),
        text_mask=torch.tensor([[True] * 4, [True, True, False, False], [True, True, True, False]]),
        special_mask=torch.tensor([[True, False, False, True], [True, True, False, False], [True, False, True, False]]),
        sample_ids=torch.tensor([7, 8, 9]),
        targets=torch.tensor([0, 1, 2]),
    )


def test_unshared(inputs):
    every = inputs.unshared()
    assert every.image_index is None
    assert every.images[:, 0, 0, 0].tolist() == [1, 0, 1]
    assert every.image_ids.tolist() == [51, 50, 51]
    assert every.unshared() is every


def test_select(inputs):
    some = inputs.select(torch.tensor([2, 1]))
    assert some.images[:, 0, 0, 0].tolist() == [1, 0]
    assert some.input_ids.tolist() == [[0, 6, 2], [0, 2, 1]]  # the column that is all padding is gone
    assert some.text_mask.sum(1).tolist() == [3, 2]
    assert some.sample_ids.tolist() == [9, 8] and some.targets.tolist() == [2, 1]
    assert replace(inputs, targets=None).select(torch.tensor([0])).targets is None


def test_all_pairs():
    """Two texts about the first image and one about the second become two samples of three alternatives."""
    mask = torch.ones(3, 2, dtype=torch.bool)
    inputs = VLMInputs(
        images=torch.rand(2, 3, 4, 4),
        image_index=torch.tensor([0, 0, 1]),
        image_ids=torch.tensor([7, 8]),
        input_ids=torch.zeros(3, 2, dtype=torch.long),
        text_mask=mask,
        special_mask=mask,
        sample_ids=torch.tensor([70, 71, 80]),
    )
    pairs = inputs.all_pairs()
    assert pairs.image_index.tolist() == [0, 0, 0, 1, 1, 1] and pairs.text_index.tolist() == [0, 1, 2] * 2
    assert pairs.sample_ids.tolist() == [70, 71, 80] * 2 and pairs.text_ids.tolist() == [70, 71, 80]
    assert pairs.targets.tolist() == [[1, 1, 0], [0, 0, 1]] and pairs.pairs_per_sample == 3
    one_each = replace(inputs, image_index=None, images=torch.rand(3, 3, 4, 4), image_ids=torch.arange(3))
    assert one_each.all_pairs().targets.equal(torch.eye(3))
    with pytest.raises(ValueError, match="text_index is given"):
        pairs.all_pairs()
