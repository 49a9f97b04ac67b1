"""Padded and packed layouts by hand-worked numbers: rows of instances, merging, some of the instances."""

import pytest
import torch

from smarttrim_mm.layouts import Merge, PackedLayout
from smarttrim_mm.structures import TokenStream

# Instance 0 has five tokens, of which 3 was dropped; instance 1 has three. The first and the last are protected.
VALID = torch.arange(5) < torch.tensor([[5], [3]])
SPECIAL = torch.tensor([[True, False, False, False, True], [True, False, True, False, False]])
KEEP = torch.tensor([[True, True, True, False, True], [True, True, True, False, False]])
X = torch.tensor([[0.0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]).unsqueeze(-1)


@pytest.fixture(params=["padded", "packed"])
def stream(request):
    """Token n of instance b is 10 b + n."""
    stream = TokenStream.start(X, ids=torch.tensor([7, 8]), valid=VALID, special=SPECIAL).select(KEEP)
    return stream if request.param == "padded" else stream.pack()


def at_kept(stream, values):
    """Values of the kept tokens, [S, ...], of either layout."""
    return values if isinstance(stream.layout, PackedLayout) else values[KEEP]


def merge_of(stream, into, weight, sized=False):
    """A merge given over the original positions."""
    layout = stream.layout
    return Merge(layout.from_grid(torch.tensor(into)), layout.from_grid(torch.tensor(weight)), sized)


def test_rows_have_the_tokens_in_their_order(stream):
    layout = stream.layout
    rows = layout.to_rows(stream.x, -1.0).squeeze(-1)
    gap = [-1.0] if rows.shape[1] == 5 else []  # padded: a dropped token leaves its place
    assert rows.tolist() == [[0, 1, 2, *gap, 4], [10, 11, 12, -1, *gap]]
    assert layout.kept_places().tolist() == [[value >= 0 for value in row] for row in rows.tolist()]
    positions = layout.to_rows(layout.positions().expand(stream.x.shape[:-1]), -1)
    assert positions[layout.kept_places()].tolist() == [0, 1, 2, 4, 0, 1, 2]
    back = layout.from_rows(rows.unsqueeze(-1))
    assert torch.equal(at_kept(stream, back), at_kept(stream, stream.x))
    assert back.shape == stream.x.shape


def test_tokens_merge_into_their_weighted_mean(stream):
    # 2 into 1, three to one; 11 into 10, a protected one, one to one
    merge = merge_of(stream, [[0, 1, 1, 3, 4], [0, 0, 2, 3, 4]], [[1.0, 1, 3, 1, 1], [2, 2, 5, 1, 1]])
    x, layout, stays = stream.layout.merge(stream.x, merge)
    assert at_kept(stream, stays).tolist() == [True, True, False, True, True, False, True]
    after = TokenStream(x, layout).select(stays).pack()
    assert after.x.squeeze(1).tolist() == [0, 1.75, 4, 10.5, 12]  # (1 + 3 * 2) / 4
    assert after.layout.source.tolist() == [0, 1, 4, 0, 2]
    assert after.layout.sizes is None


def test_protected_tokens_do_not_merge_away(stream):
    merge = merge_of(stream, [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]], [[1.0] * 5] * 2)
    x, layout, stays = stream.layout.merge(stream.x, merge)
    after = TokenStream(x, layout).select(stays).pack()
    assert after.x.squeeze(1).tolist() == [0, 1.5, 4, 10, 11, 12]  # what was dropped takes no part either
    assert after.layout.counts().tolist() == [3, 3]


def test_sizes_add_up_over_layers(stream):
    merge = merge_of(stream, [[0, 1, 1, 3, 4], [0, 1, 2, 3, 4]], [[1.0] * 5] * 2, sized=True)
    x, layout, stays = stream.layout.merge(stream.x, merge)
    once = TokenStream(x, layout).select(stays)
    assert once.pack().layout.sizes.tolist() == [1, 2, 1, 1, 1, 1]
    grid = once.layout.to_grid(once.layout.sizes, 1.0)
    assert grid.tolist() == [[1, 2, 1, 1, 1], [1, 1, 1, 1, 1]]
    again = Merge(once.layout.from_grid(torch.tensor([[0, 0, 2, 3, 4], [0, 0, 2, 3, 4]])), once.layout.sizes, True)
    x, layout, stays = once.layout.merge(once.x, again)
    twice = TokenStream(x, layout).select(stays).pack()
    assert twice.x.squeeze(1).tolist() == [1, 4, 10.5, 12]  # (0 + 2 * 1.5) / 3
    assert twice.layout.sizes.tolist() == [3, 1, 2, 1]


def test_what_stands_alone_stays_bit_for_bit(stream):
    x = torch.randn_like(stream.x).to(torch.bfloat16)
    own = stream.layout.positions().expand(x.shape[:-1])
    merged, _, stays = stream.layout.merge(x, Merge(own, torch.full(own.shape, 0.3)))
    assert torch.equal(merged, x) and stays.all()


def test_gradients_reach_all_that_merge_and_their_weights(stream):
    x = stream.x.clone().requires_grad_()
    weight = torch.tensor([[1.0, 1, 3, 1, 1], [1, 1, 1, 1, 1]], requires_grad=True)
    layout = stream.layout
    into = layout.from_grid(torch.tensor([[0, 1, 1, 3, 4], [0, 1, 2, 3, 4]]))
    merged, _, _ = layout.merge(x, Merge(into, layout.from_grid(weight)))
    (at_kept(stream, merged).squeeze(1) * torch.tensor([0.0, 1, 0, 0, 0, 0, 0])).sum().backward()
    assert at_kept(stream, x.grad).squeeze(1).tolist() == [0, 0.25, 0.75, 0, 0, 0, 0]
    # d/dw of (w1 + 2 w2) / (w1 + w2) at (1, 3): (1 - 1.75) / 4 and (2 - 1.75) / 4
    torch.testing.assert_close(weight.grad, torch.tensor([[0, -0.1875, 0.0625, 0, 0], [0.0] * 5]))


def test_some_of_the_instances():
    stream = TokenStream.start(X, ids=torch.tensor([7, 8]), valid=VALID, special=SPECIAL).select(KEEP).pack()
    merge = merge_of(stream, [[0, 1, 2, 3, 4], [0, 0, 2, 3, 4]], [[1.0] * 5] * 2, sized=True)
    x, layout, stays = stream.layout.merge(stream.x, merge)
    merged = TokenStream(x, layout).select(stays)
    x, layout, rows = merged.layout.some(merged.x, [1])
    assert x.squeeze(1).tolist() == [10.5, 12] and rows.tolist() == [4, 5]
    assert (layout.lengths, layout.cu_seqlens.tolist()) == ((2,), [0, 2])
    assert (layout.instance.tolist(), layout.source.tolist()) == ([0, 0], [0, 2])
    assert (layout.ids.tolist(), layout.real.tolist(), layout.sizes.tolist()) == ([8], [3], [2, 1])
    x, layout, rows = merged.layout.some(merged.x, [0, 1])
    assert torch.equal(x, merged.x) and rows.tolist() == list(range(6)) and layout.lengths == (4, 2)
