"""Matching by hand-worked numbers; keys as in test_merging.py."""

import pytest
import torch

from smarttrim_mm.ops.matching import (
    bipartite_match,
    complete_match,
    complete_multiply_adds,
    matching_multiply_adds,
    merge_counts,
)
from smarttrim_mm.ops.merging import match_tokens
from smarttrim_mm.testing import count_multiply_adds

# 4 is most like 3 (cosine .9994), 2 like 1 (.9988), 6 like 1 (.743), nothing like 5; token 0 would be the same as 2
KEYS = torch.tensor([[2.0, 0.1], [1, 0], [2, 0.1], [0, 1], [0.1, 3], [-1, 0], [1, 0.9]])
FREE = torch.arange(7) > 0  # so that 1, 3, 5 are targets, and 2, 4, 6 sources


def test_each_instance_merges_its_own_number_of_most_similar_pairs():
    keys = torch.stack([KEYS, KEYS * torch.linspace(1, 7, 7)[:, None], KEYS, KEYS])  # lengths of keys play no part
    into = bipartite_match(keys, FREE.expand(4, 7), torch.tensor([2, 2, 3, 0]))
    assert into.tolist() == [[0, 1, 1, 3, 3, 5, 6]] * 2 + [[0, 1, 1, 3, 3, 5, 1], [0, 1, 2, 3, 4, 5, 6]]


def test_tokens_that_are_gone_are_not_dealt():
    """Without 3, the targets are 1, 4 and 6: 2 is most like 1 (.9988; .776 to 6), 5 like 4 (-.033)."""
    free = torch.tensor([[False, True, True, False, True, True, True]])
    assert bipartite_match(KEYS[None], free, torch.tensor([1])).tolist() == [[0, 1, 1, 3, 4, 5, 6]]
    assert bipartite_match(KEYS[None], free, torch.tensor([2])).tolist() == [[0, 1, 1, 3, 4, 4, 6]]


def test_more_than_there_are_means_all_sources():
    assert bipartite_match(KEYS[None], FREE[None], torch.tensor([99])).tolist() == [[0, 1, 1, 3, 3, 5, 1]]


def test_equal_pairs_by_their_order():
    same = torch.ones(1, 6, 2)
    # sources 1, 3, 5 are as like to 0 as to 2 and 4: the first target, and the first source before the others
    assert bipartite_match(same, torch.ones(1, 6).bool(), torch.tensor([2])).tolist() == [[0, 0, 2, 0, 4, 5]]


@pytest.mark.parametrize("free", [[False, False, False], [False, True, False]])
def test_nothing_to_pair_with(free):
    into = bipartite_match(torch.ones(1, 3, 2), torch.tensor([free]), torch.tensor([1]))
    assert into.tolist() == [[0, 1, 2]]


def test_one_token():
    assert bipartite_match(torch.ones(2, 1, 3), torch.ones(2, 1).bool(), torch.tensor([1, 0])).tolist() == [[0], [0]]


@pytest.mark.parametrize("protected", [0, 1, 2])
def test_with_equal_lengths_it_is_the_matching_of_fixed_counts(protected):
    keys = torch.randn(5, 13, 8, generator=torch.Generator().manual_seed(0))
    free = (torch.arange(13) >= protected).expand(5, 13)
    for count in range((13 - protected) // 2 + 1):
        merges = match_tokens(keys, count, protected)
        expected = torch.arange(13).expand(5, 13).scatter(1, merges.sources, merges.targets)
        assert torch.equal(bipartite_match(keys, free, torch.full((5,), count)), expected)


def test_an_instance_is_matched_as_if_alone():
    generator = torch.Generator().manual_seed(1)
    keys, free = torch.randn(4, 10, 6, generator=generator), torch.rand(4, 10, generator=generator) < 0.7
    counts = torch.tensor([0, 1, 2, 9])
    together = bipartite_match(keys, free, counts)
    for i in range(4):
        assert torch.equal(bipartite_match(keys[i : i + 1], free[i : i + 1], counts[i : i + 1])[0], together[i])


def test_whole_numbers_add_up_to_the_rate():
    lengths = torch.tensor([17.0, 17, 6])
    per_layer = torch.tensor([2.5, 0.4, 2.5])
    counts = [merge_counts(lengths - 1, depth, per_layer).tolist() for depth in range(4)]
    # 2.5, 5, 7.5, 10 and .4, .8, 1.2, 1.6, rounded down, one minus the other; of five tokens two can merge
    assert counts == [[2, 0, 2], [3, 0, 2], [2, 1, 2], [3, 0, 2]]
    # 4 * 75 * 0.21 is 63, and 62.999996 in single precision: that costs no token
    of_four = [merge_counts(torch.tensor([75.0]), depth, torch.tensor([75.0]) * 0.21) for depth in range(4)]
    assert sum(of_four).tolist() == [63]


@pytest.mark.parametrize("tokens", [1, 3, 7, 8])
def test_compute_of_the_matching(tokens):
    keys, free = torch.randn(3, tokens, 5), torch.ones(3, tokens).bool()
    _, counted = count_multiply_adds(lambda: bipartite_match(keys, free, torch.ones(3).long()))
    assert matching_multiply_adds(torch.tensor([float(tokens)] * 3), 5).sum() == counted


# Directions of the plane; cosines are of their differences. Token 0 does not take part.
ANGLES = torch.tensor([0.0, 0, 10, 25, 90, 110])


def directions(angles):
    return torch.stack([angles.deg2rad().cos(), angles.deg2rad().sin()], -1)[None] * torch.linspace(1, 3, len(angles))[:, None]


def complete(count, importance=(0.0,) * 6, angles=ANGLES):
    free = torch.arange(len(angles))[None] > 0
    return complete_match(directions(angles), torch.tensor([importance]), free, torch.tensor([count])).tolist()[0]


def test_any_token_may_merge_into_any_other():
    # best pairs: 1 and 2 (10 degrees), 3 with 2 (15), 4 and 5 (20): in this order 1, 2, 3, 4, 5. Behind it, 1 has 2 (10), 2 has
    # 3 (15), 3 has 4 (65), 4 has 5 (20), 5 nothing
    assert complete(0) == [0, 1, 2, 3, 4, 5]
    assert complete(1) == [0, 2, 2, 3, 4, 5]
    assert complete(2) == [0, 3, 3, 3, 4, 5]  # 1 and 2, each into the one most like it that stays
    assert complete(3) == [0, 3, 3, 3, 5, 5]
    assert complete(4) == complete(99) == [0, 5, 5, 5, 5, 5]  # one is left


def test_what_is_important_is_merged_into():
    # 1 is worth .5: it has 2 behind it (cos 10 = .985 - .5), and 2 has 3 (cos 15 = .966), but is most like 1, which stays
    assert complete(1, (0.0, 0.5, 0.0, 0.0, 0.0, 0.0)) == [0, 1, 1, 3, 4, 5]
    # 4 is worth -.5, so that it merges before all (cos 20 = .940 + .5)
    assert complete(1, (0.0, 0.0, 0.0, 0.0, -0.5, 0.0)) == [0, 1, 2, 3, 5, 5]
    # 5 is the last in order, which no importance changes: there is none behind it
    assert complete(1, (0.0, 0.0, 0.0, 0.0, 0.0, -0.5)) == complete(1)
    assert complete(1, (9.0, 0.0, 0.0, 0.0, 0.0, 0.0)) == complete(1)  # of one that takes no part it does not matter


def test_equal_pairs_of_any_tokens_by_their_order():
    assert complete(2, angles=torch.zeros(6)) == [0, 3, 3, 3, 4, 5]  # 1 into 2, 2 into 3


def test_any_with_any_an_instance_is_matched_as_if_alone():
    generator = torch.Generator().manual_seed(1)
    keys, free = torch.randn(5, 10, 6, generator=generator), torch.rand(5, 10, generator=generator) < 0.7
    free[4] = False
    importance, counts = torch.rand(5, 10, generator=generator), torch.tensor([0, 1, 4, 99, 3])
    together = complete_match(keys, importance, free, counts)
    for i in range(5):
        row, there = slice(i, i + 1), free[i] if free[i].any() else torch.ones(10).bool()
        packed = complete_match(keys[row, there], importance[row, there], free[row, there], counts[row])
        assert torch.equal(together[i, there], there.nonzero().squeeze(1)[packed[0]])
        assert torch.equal(together[i, ~free[i]], (~free[i]).nonzero().squeeze(1))
        gone = (together[i] != torch.arange(10)).sum()
        assert gone == min(counts[i], max(free[i].sum() - 1, 0))
        assert torch.equal(together[i].gather(0, together[i]), together[i])  # what is merged into stays


def test_compute_of_the_complete_matching():
    keys, free = torch.randn(3, 7, 5), torch.ones(3, 7).bool()
    _, counted = count_multiply_adds(lambda: complete_match(keys, torch.zeros(3, 7), free, torch.ones(3).long()))
    assert complete_multiply_adds(torch.tensor([7.0] * 3), 5).sum() == counted
