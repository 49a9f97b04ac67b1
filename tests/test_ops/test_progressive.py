import pytest
import torch

from smarttrim_mm.ops.progressive import least_important, pruned_share, standardise


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (1 / 3, 0.5), (0.5, 0.5**0.5), (1.0, 1.0)])
def test_the_pruned_share_rises_as_a_sine(progress, share):
    assert pruned_share(progress) == pytest.approx(share)


def test_all_is_pruned_exactly_at_the_end():
    assert pruned_share(1.0) == 1.0 and pruned_share(0.0) == 0.0


def test_values_are_standardised_within_their_group():
    """Group 0 holds 1, 5 (mean 3, deviation 2), group 1 holds 10, 10 and group 2 a single value."""
    values, groups = torch.tensor([1.0, 10.0, 5.0, 10.0, 7.0]), torch.tensor([0, 1, 0, 1, 2])
    assert standardise(values, groups).tolist() == [-1.0, 0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("goal", "goes"),
    [
        (0.0, []),
        (0.5, [3]),  # the least important one, though it costs more than is asked for
        (2.0, [3]),
        (2.1, [3, 1]),
        (3.0, [3, 1]),
        (3.5, [3, 1, 2]),
        (100.0, [3, 1, 2]),  # 0 and 4 are the best of their sites
    ],
)
def test_the_least_important_go_until_the_goal_is_reached(goal, goes):
    scores, costs = torch.tensor([3.0, 1.0, 2.0, 0.5, 2.5]), torch.tensor([10.0, 1.0, 4.0, 2.0, 9.0])
    found = least_important(scores, costs, torch.tensor([0, 0, 1, 1, 1]), torch.tensor(goal))
    assert found.nonzero().flatten().tolist() == sorted(goes)


def test_ties_go_in_their_order():
    found = least_important(torch.zeros(4), torch.ones(4), torch.tensor([0, 0, 1, 1]), torch.tensor(1.0))
    assert found.tolist() == [True, False, False, False]
