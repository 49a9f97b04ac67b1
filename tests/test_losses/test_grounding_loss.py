from math import log

import pytest
import torch

from smarttrim_mm.inputs import BoxTargets
from smarttrim_mm.models.trimmed_vlm import is_right
from smarttrim_mm.registry import MODELS


@pytest.fixture
def logits():
    """Coordinates 1/2, 1/2, 1 and 1/2 of five steps, each with the probability 0.6."""
    logits = torch.zeros(4, 5)
    logits[torch.arange(4), torch.tensor([2, 2, 4, 2])] = log(6)
    return logits


MIDDLE = BoxTargets(torch.tensor([[0.5, 0.5, 0.5, 0.5]]))  # a quarter of the image


def test_by_hand(logits):
    """The box found is twice as wide as it should be: IoU and generalised IoU 1/2, and one coordinate off by 1/2."""
    losses = MODELS.build({"type": "BoxGeneration"})(logits, MIDDLE)
    found = {name: float(value) for name, value in losses.items()}
    expected = {"loss_task": (log(10) - 3 * log(0.6)) / 4, "box_l1": 0.5 / 4, "box_giou": 0.5}
    assert found == pytest.approx(expected)


def test_boxes_are_compared_each_with_its_own(logits):
    """Of two boxes the second is found exactly, and the first is none that overlaps: 1 minus -1/2 and 0."""
    corner, middle = torch.zeros(4, 5), torch.zeros(4, 5)
    corner[torch.arange(4), torch.tensor([1, 1, 2, 2])] = middle[:, 2] = 1.0  # the upper left quarter; that in the middle
    opposite = torch.tensor([[0.75, 0.75, 0.5, 0.5]])  # the lower right one
    losses = MODELS.build({"type": "BoxGeneration"})(
        torch.cat([corner, middle]), BoxTargets(torch.cat([opposite, MIDDLE.boxes]))
    )
    assert float(losses["box_giou"]) == pytest.approx((1 + 0.5) / 2)
    assert float(losses["box_l1"]) == pytest.approx(2 * 0.5 / 8)


def test_coordinates_are_rounded_down():
    assert BoxTargets(torch.tensor([[0.0, 0.26, 0.99, 1.0]])).bins(5).tolist() == [[0, 1, 3, 4]]


def test_each_coordinate_is_right_or_wrong(logits):
    assert is_right(logits, MIDDLE).tolist() == [True, True, False, True]
