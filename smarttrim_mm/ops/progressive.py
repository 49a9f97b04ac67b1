"""Progressive pruning by one ranking over structures of different kinds (UPop: Shi et al., arXiv 2301.13741)."""

import math

import torch
from torch import Tensor


def pruned_share(progress: float) -> float:
    """How much of the final pruning is done: sqrt((1 - cos(pi t)) / 2), the paper's p_t / p as we read it.

    Args:
        progress: t / T of the search, in 0-1.
    """
    return math.sqrt((1 - math.cos(math.pi * progress)) / 2)


def standardise(values: Tensor, groups: Tensor) -> Tensor:
    """Values minus their group's mean, over its standard deviation; 0 in a group whose values are all the same.

    Args:
        values: [S].
        groups: Number of each value's group, long [S].

    Returns:
        fp64 [S].
    """
    values = values.double()
    size = int(groups.max()) + 1
    counts = values.new_zeros(size).index_add(0, groups, torch.ones_like(values))
    centred = values - (values.new_zeros(size).index_add(0, groups, values) / counts)[groups]
    spread = (values.new_zeros(size).index_add(0, groups, centred**2) / counts).sqrt()[groups]
    return torch.where(spread > 0, centred / spread, 0.0)


def least_important(scores: Tensor, costs: Tensor, sites: Tensor, goal: Tensor) -> Tensor:
    """The least important ones, as many as it takes for their costs to add up to a goal, ties by their order.

    The best of each site stays, whatever it costs, so that no layer is left without a head or without a unit.

    Args:
        scores: Importance, comparable over all, [S].
        costs: What leaving each out saves, [S].
        sites: Number of each one's site, long [S].
        goal: What is to be saved, []; 0: nothing goes.

    Returns:
        True at those that go, bool [S]: all but each site's best if the goal is out of reach.
    """
    order = scores.argsort(stable=True)
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    best = ranks.new_zeros(int(sites.max()) + 1).scatter_reduce(0, sites, ranks, "amax")
    free = ranks != best[sites]
    saved = torch.where(free, costs.double(), 0.0)[order]
    before = saved.cumsum(0) - saved
    goes = torch.empty_like(free).scatter_(0, order, before < goal.double() * (1 - 1e-9))  # float error is no extra one
    return goes & free
