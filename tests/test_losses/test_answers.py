import math

import pytest
import torch

from smarttrim_mm.registry import MODELS

LOGITS = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])


def test_cross_entropy():
    loss = MODELS.build({"type": "AnswerCrossEntropy"})(LOGITS, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_label_smoothing():
    loss = MODELS.build({"type": "AnswerCrossEntropy", "label_smoothing": 0.5})(LOGITS[:1], torch.tensor([0]))
    assert loss.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))


def test_soft_targets_are_summed_over_answers():
    loss = MODELS.build({"type": "SoftTargetBCE"})(torch.zeros(2, 5), torch.tensor([[0.3] * 5, [1.0] * 5]))
    assert loss.item() == pytest.approx(5 * math.log(2))


def test_half_precision_is_summed_in_single():
    assert MODELS.build({"type": "AnswerCrossEntropy"})(LOGITS.bfloat16(), torch.tensor([0, 1])).dtype == torch.float32
