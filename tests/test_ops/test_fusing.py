import torch

from smarttrim_mm.ops.fusing import fuse_rest, kept_counts, merge_into_samples

NONE = -torch.inf


def test_kept_counts_are_rounded_up():
    # 10 * 0.7 = 7, 7 * 0.7 = 4.9, 1 * 0.7 = 0.7, 0
    assert kept_counts(torch.tensor([10, 7, 1, 0]), 0.3).tolist() == [7, 5, 1, 0]
    assert kept_counts(torch.tensor([10, 7]), torch.tensor(0.0)).tolist() == [10, 7]
    assert kept_counts(torch.tensor([16, 1]), 0.999).tolist() == [1, 1]


def test_the_rest_fuses_in_the_place_of_its_best():
    scores = torch.tensor([[NONE, 0.1, 0.4, 0.2, 0.3], [NONE, 0.2, 0.2, 0.2, NONE]])
    # row 0: 2 and 4 are the best two, 3 the best of the rest. Row 1: all are alike, so 1 stays, and 2 takes up 3
    assert fuse_rest(scores, torch.tensor([2, 1])).tolist() == [[0, 3, 2, 3, 4], [0, 1, 2, 2, 4]]


def test_nothing_fuses_where_all_or_all_but_one_are_kept():
    scores = torch.tensor([[NONE, 0.1, 0.4, 0.2], [NONE, 0.1, 0.4, 0.2], [NONE, 0.1, 0.4, 0.2]])
    assert fuse_rest(scores, torch.tensor([2, 3, 9])).tolist() == [[0, 1, 2, 3]] * 3
    assert fuse_rest(scores[:1], torch.tensor([0])).tolist() == [[0, 2, 2, 2]]


def test_samples_are_even_and_take_up_what_is_like_them():
    east, north = [1.0, 0.0], [0.0, 2.0]
    nearly_east, nearly_north = [3.0, 1.0], [-0.1, 0.5]
    keys = torch.tensor([[north, east, nearly_north, nearly_east, north, nearly_east, east]])
    free = torch.tensor([[False, True, True, True, True, True, False]])
    # two of the five free ones: j * 2 mod 5 is 0 2 4 1 3, below 2 for j = 0 and 3, which are the places 1 (east) and 4 (north);
    # places 0 and 6 take no part
    assert merge_into_samples(keys, free, torch.tensor([2])).tolist() == [[0, 1, 4, 1, 4, 1, 6]]
    assert merge_into_samples(keys, free, torch.tensor([1])).tolist() == [[0, 1, 1, 1, 1, 1, 6]]
    for all_of_them in (5, 8):
        assert merge_into_samples(keys, free, torch.tensor([all_of_them])).tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_as_many_are_sampled_as_are_wanted():
    keys = torch.randn(1, 23, 4)
    own = torch.arange(23)
    for many in range(24):
        free = own < many
        for wanted in range(1, many + 1):
            into = merge_into_samples(keys, free[None], torch.tensor([wanted]))[0]
            assert (into == own)[:many].sum() == wanted and (into == own)[many:].all()


def test_the_rest_fuses_at_the_place_of_its_best():
    scores = torch.tensor([[NONE, 0.3, 0.1, 0.5, 0.2, NONE]]).expand(6, 6)
    # 3, 1, 4, 2 by score
    assert fuse_rest(scores, torch.tensor([0, 1, 2, 3, 4, 9])).tolist() == [
        [0, 3, 3, 3, 3, 5],
        [0, 1, 1, 3, 1, 5],
        [0, 1, 4, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],  # one alone is not fused with anything
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],
    ]


def test_ties_go_to_the_lower_index_and_rows_without_tokens_stay():
    scores = torch.tensor([[0.2, 0.2, 0.2, 0.2], [NONE] * 4, [NONE, 0.1, NONE, NONE]])
    assert fuse_rest(scores, torch.tensor([1, 0, 0])).tolist() == [[0, 1, 1, 1], [0, 1, 2, 3], [0, 1, 2, 3]]
