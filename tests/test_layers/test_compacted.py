import pytest
import torch

from smarttrim_mm.layers.compacted import CompactedLayout, compact
from smarttrim_mm.structures import TokenStream

IDS = torch.tensor([7, 8])
X = torch.arange(10.0).view(2, 5, 1)
VALID = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
KEEP = torch.tensor(
    [[0, 0, 1, 0, 1], [0, 0, 0, 1, 1]]
).bool()  # the first token is protected, the last of the second is padding


def stream(valid=VALID):
    return compact(TokenStream.start(X, ids=IDS, valid=valid))


def test_kept_tokens_move_to_the_left():
    cut = stream().select(KEEP)
    assert cut.x[0, :, 0].tolist() == [0, 2, 4]
    assert cut.x[1, :2, 0].tolist() == [5, 8]
    layout = cut.layout
    assert layout.gate.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert layout.source[0].tolist() == [0, 2, 4] and layout.source[1, :2].tolist() == [0, 3]
    assert layout.kept_grid().tolist() == [[True, False, True, False, True], [True, False, False, True, False]]
    assert [getattr(layout, name)().tolist() for name in ("counts", "full", "held", "floor")] == [
        [3, 2],
        [5, 4],
        [3, 3],
        [1, 1],
    ]
    assert (layout.size, layout.whole) == (5, False)


def test_what_was_dropped_stays_dropped():
    twice = stream().select(KEEP).select(torch.tensor([[1, 0, 1], [1, 0, 1]]))
    assert twice.layout.kept_grid().tolist() == [[True, False, False, False, True], [True, False, False, False, False]]
    assert twice.x[:, 0, 0].tolist() == [0, 5] and twice.x[0, 1, 0] == 4
    assert twice.layout.gate.tolist() == [[1, 1], [1, 0]]


def test_equal_counts_need_no_mask_and_nothing_dropped_moves_nothing():
    cut = stream().select(torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]))
    assert cut.layout.whole and cut.x.shape == (2, 2, 1)
    again = cut.select(torch.ones(2, 2))
    assert again.x is cut.x and again.layout is cut.layout


def test_grids_are_over_the_original_positions():
    layout = stream().select(KEEP).layout
    assert layout.to_grid(torch.tensor([[1.0, 2, 3], [4, 5, 6]]), -1).tolist() == [[1, -1, 2, -1, 3], [4, -1, -1, 5, -1]]
    values = layout.from_grid(torch.arange(10.0).view(2, 5))
    assert values[0].tolist() == [0, 2, 4] and values[1, :2].tolist() == [5, 8]
    assert torch.equal(layout.positions(), layout.source)


def test_guides():
    cut = stream().select(KEEP)
    assert cut.guide().tolist() == [[0], [5]]
    special = torch.zeros_like(VALID).index_fill(1, torch.tensor(1), True)
    mean = compact(TokenStream.start(X, ids=IDS, valid=VALID, special=special, guide_index=None)).select(KEEP)
    torch.testing.assert_close(mean.guide(), torch.tensor([[(1 + 2 + 4) / 3], [(6 + 8) / 2]]))


def test_it_packs_and_pads_as_the_padded_layout_does():
    cut, padded = stream().select(KEEP), TokenStream.start(X, ids=IDS, valid=VALID).select(KEEP)
    packed, expected = cut.pack(), padded.pack()
    assert torch.equal(packed.x, expected.x)
    for name, value in vars(expected.layout).items():
        found = getattr(packed.layout, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
    assert all(torch.equal(a, b) for a, b in zip(cut.pad(), padded.pad(), strict=True))


def test_expand_split_and_join():
    cut = stream().select(KEEP)
    twice = cut.expand(torch.tensor([1, 0, 1]), torch.tensor([1, 2, 3]))
    assert twice.layout.kept_grid().tolist() == cut.layout.kept_grid()[[1, 0, 1]].tolist()
    assert (twice.layout.ids.tolist(), twice.layout.full().tolist()) == ([1, 2, 3], [4, 5, 4])
    first, others = cut.split(1)
    assert others.layout.source[0].tolist() == [2, 4]
    assert torch.equal(cut.layout.join(first.x, others.x), cut.x)


def test_chosen_places():
    x, layout = stream(None).layout.take(X, torch.tensor([[0, 3], [2, 1]]))
    assert x[..., 0].tolist() == [[0, 3], [7, 6]]
    assert isinstance(layout, CompactedLayout) and layout.whole
    assert layout.protected.tolist() == [[True, False], [False, False]]


def test_packed_streams_are_refused():
    with pytest.raises(ValueError, match="the stream is packed; expected a padded one"):
        compact(stream().pack())
