"""Merging by hand-worked numbers: token 0 is protected, 1, 3, 5 are targets, 2, 4, 6 are sources."""

import pytest
import torch

from smarttrim_mm.ops.merging import Merges, match_tokens, matching_multiply_adds, merge_schedule, merge_tokens, most_merges
from smarttrim_mm.testing import count_multiply_adds

# 4 is most like 3 (cosine .9994), 2 like 1 (.9988), 6 like 1 (.743), nothing like 5; token 0 would be the same as 2
KEYS = torch.tensor([[2.0, 0.1], [1, 0], [2, 0.1], [0, 1], [0.1, 3], [-1, 0], [1, 0.9]])


def test_the_most_similar_pairs_merge_first():
    found = match_tokens(torch.stack([KEYS, KEYS * torch.linspace(1, 7, 7)[:, None]]), 2)
    assert found.sources.tolist() == [[4, 2]] * 2  # lengths of keys play no part
    assert found.targets.tolist() == [[3, 1]] * 2
    assert found.kept.tolist() == [[0, 1, 3, 5, 6]] * 2


def test_several_merge_into_one():
    found = match_tokens(KEYS[None], 3)
    assert (found.sources.tolist(), found.targets.tolist()) == ([[4, 2, 6]], [[3, 1, 1]])
    assert found.kept.tolist() == [[0, 1, 3, 5]]


def test_without_protected_tokens_the_first_is_a_target():
    found = match_tokens(KEYS[None, :4], 1, protected=0)  # targets 0, 2; sources 1, 3
    assert (found.sources.tolist(), found.targets.tolist(), found.kept.tolist()) == ([[1]], [[0]], [[0, 2, 3]])


def test_nothing_merges_at_zero():
    x = torch.randn(2, 7, 3)
    found = match_tokens(x, 0)
    assert found.sources.shape == (2, 0)
    after, sizes = merge_tokens(x, torch.ones(2, 7), found)
    assert torch.equal(after, x) and torch.equal(sizes, torch.ones(2, 7))


def test_means_are_weighted_by_size():
    x = torch.tensor([[[10.0], [1], [2], [3], [4], [5], [6]]])
    sizes = torch.tensor([[1.0, 1, 3, 1, 1, 1, 2]])
    after, left = merge_tokens(x, sizes, match_tokens(KEYS[None], 3))
    # 1, 2 (three times) and 6 (twice); 3 and 4
    torch.testing.assert_close(after, torch.tensor([[[10], [19 / 6], [3.5], [5]]]))
    assert left.tolist() == [[1, 6, 2, 1]]
    assert x.flatten().tolist() == [10, 1, 2, 3, 4, 5, 6]  # as it was


def test_size_and_weighted_sum_are_conserved():
    generator = torch.Generator().manual_seed(0)
    x, sizes = torch.randn(3, 12, 5, generator=generator), torch.rand(3, 12, generator=generator) + 1
    after, left = merge_tokens(x, sizes, match_tokens(x, 5))
    assert after.shape == (3, 7, 5)
    torch.testing.assert_close(left.sum(1), sizes.sum(1))
    torch.testing.assert_close((after * left[..., None]).sum(1), (x * sizes[..., None]).sum(1))
    torch.testing.assert_close(after[:, 0], x[:, 0])


def test_instances_are_matched_alone():
    keys = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(1))
    together, alone = match_tokens(keys, 3), [match_tokens(one[None], 3) for one in keys]
    for name in vars(together):
        assert torch.equal(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))


@pytest.mark.parametrize("count", [-1, 4])
def test_more_than_half_cannot_merge(count):
    with pytest.raises(ValueError, match=f"count is {count}; expected 0 to 3, half of the 7 tokens but 1"):
        match_tokens(KEYS[None], count)


def test_strides_play_no_part():
    x = torch.randn(7, 2, 4, generator=torch.Generator().manual_seed(2)).transpose(0, 1)
    merges, sizes = match_tokens(x, 2), torch.ones(2, 7)
    assert torch.equal(merge_tokens(x, sizes, merges)[0], merge_tokens(x.contiguous(), sizes, merges)[0])


def test_half_precision_stays():
    x = torch.randn(1, 7, 4).bfloat16()
    after, sizes = merge_tokens(x, torch.ones(1, 7), Merges(*(torch.tensor([[i]]) for i in (2, 1)), torch.tensor([[0, 1]])))
    assert (after.dtype, sizes.dtype) == (torch.bfloat16, torch.float32)
    assert sizes.tolist() == [[1, 2]]


def test_schedules():
    assert [most_merges(tokens) for tokens in (325, 5, 4, 2, 1)] == [162, 2, 1, 0, 0]
    assert merge_schedule(325, 11, 12) == [12] * 11
    assert merge_schedule(17, 3, 2.5) == [2, 3, 2]
    assert merge_schedule(9, 4, 3) == [3, 2, 1, 1]  # half of 8, 5, 3 and 2 tokens, rounded down, is the most
    assert merge_schedule(9, 2, 0) == [0, 0]


@pytest.mark.parametrize("tokens", [3, 7, 8])
def test_compute_of_the_matching(tokens):
    keys = torch.randn(3, tokens, 5)
    _, counted = count_multiply_adds(lambda: match_tokens(keys, 1))
    assert matching_multiply_adds(torch.tensor([float(tokens)] * 3), 5).sum() == counted
