import math

import pytest
import torch

from smarttrim_mm.losses.distillation import SelfDistillation

TEACHER = torch.tensor([[math.log(3.0), 0.0]])  # 3/4 and 1/4
STUDENT = torch.zeros(1, 2)
KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)


def test_kl_by_hand():
    assert SelfDistillation()(STUDENT, TEACHER).item() == pytest.approx(KL, rel=1e-5)
    both = SelfDistillation()(STUDENT.repeat(2, 1), torch.cat([TEACHER, STUDENT]))
    assert both.item() == pytest.approx(KL / 2, rel=1e-5)  # a mean over the batch


def test_the_direction_is_teacher_to_student():
    reverse = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert SelfDistillation()(TEACHER, STUDENT).item() == pytest.approx(reverse, rel=1e-5)


def test_weight():
    assert SelfDistillation(weight=2.5)(STUDENT, TEACHER).item() == pytest.approx(2.5 * KL, rel=1e-5)


def test_temperature_divides_both_logits_and_keeps_the_scale():
    p = math.sqrt(3) / (1 + math.sqrt(3))
    expected = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert SelfDistillation(temperature=2.0)(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-5)


def test_the_teacher_is_detached():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    SelfDistillation()(student, teacher).backward()
    assert student.grad.any() and teacher.grad is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1}, "weight of the distillation loss is -1"),
        ({"dense_task_weight": -0.5}, "dense_task_weight of the distillation loss is -0.5"),
        ({"temperature": 0}, "temperature of the distillation loss is 0; expected a number > 0"),
        (
            {"frozen_teacher": "x.pth", "dense_task_weight": 0.5},
            "dense_task_weight is 0.5, but a frozen teacher is not trained",
        ),
    ],
)
def test_impossible_values(changes, message):
    with pytest.raises(ValueError, match=message):
        SelfDistillation(**changes)
