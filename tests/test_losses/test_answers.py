import math

import pytest
import torch

from smarttrim_mm.inputs import TextTargets
from smarttrim_mm.losses.answers import AnswerGeneration
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


def test_generation_weighs_texts_and_sums_their_tokens():
    texts = TextTargets(
        input_ids=torch.tensor([[0, 1, 2], [0, 2, 9]]),
        mask=torch.tensor([[True, True, True], [True, True, False]]),
        weights=torch.tensor([0.75, 0.5]),
        sample=torch.tensor([0, 0]),
        samples=1,
    )
    logits = torch.tensor([[0.0, 3, 0], [0, 0, 1], [2, 0, 0]])
    each = -torch.stack([logits[0].log_softmax(0)[1], logits[1].log_softmax(0)[2], logits[2].log_softmax(0)[2]])
    found = AnswerGeneration(label_smoothing=0.0)(logits, texts)
    torch.testing.assert_close(found, 0.75 * (each[0] + each[1]) + 0.5 * each[2])
    smooth = AnswerGeneration(label_smoothing=0.3)(logits, texts)
    whole = -logits.log_softmax(1).mean(1)
    each = 0.7 * each + 0.3 * whole
    torch.testing.assert_close(smooth, 0.75 * (each[0] + each[1]) + 0.5 * each[2])


def test_generation_per_token():
    """As LAVIS's captioner: the mean over the tokens of the batch, whatever their captions' lengths."""
    texts = TextTargets(
        input_ids=torch.tensor([[0, 1, 2], [0, 2, 9]]),
        mask=torch.tensor([[True, True, True], [True, True, False]]),
        weights=torch.ones(2),
        sample=torch.tensor([0, 1]),
        samples=2,
    )
    logits = torch.tensor([[0.0, 3, 0], [0, 0, 1], [2, 0, 0]])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2, 2]), label_smoothing=0.1)
    torch.testing.assert_close(AnswerGeneration(per_token=True)(logits, texts), expected)
    torch.testing.assert_close(AnswerGeneration()(logits, texts), expected * 3 / 2)
