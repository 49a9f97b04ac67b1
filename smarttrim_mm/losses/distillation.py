"""Self-distillation: the dense pass teaches the trimmed one (SmartTrim, arXiv 2305.15033)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from smarttrim_mm.pairs import PairLogits, parts_of
from smarttrim_mm.registry import MODELS


@MODELS.register_module()
class SelfDistillation(nn.Module):
    """weight * KL(teacher || student) over answers, the teacher detached.

    Args:
        weight: lambda_sd. The paper's value is not known to us.
        temperature: Divides both logits; the loss is scaled by its square, so that gradients keep their size.
        frozen_teacher: Checkpoint whose dense pass teaches; None: that of the weights in training.
        teacher_backbone: Config of the frozen teacher's backbone, where it is another than the student's: of more layers, say
            (fine-tuning with knowledge distillation, the static baseline that SmartTrim's paper compares with); None: the
            student's.
        dense_task_weight: Weight of the task loss on the dense pass of the shared weights, so that the teacher does not
            drift; 0 leaves the dense pass without gradients.

    Raises:
        ValueError: If a number is out of range, a frozen teacher is to be trained, or a teacher's backbone comes without its
            weights.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        temperature: float = 1.0,
        frozen_teacher: str | None = None,
        teacher_backbone: Mapping[str, Any] | None = None,
        dense_task_weight: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("dense_task_weight", dense_task_weight)):
            if value < 0:
                raise ValueError(f"{name} of the distillation loss is {value}; expected a number >= 0")
        if temperature <= 0:
            raise ValueError(f"temperature of the distillation loss is {temperature}; expected a number > 0")
        if frozen_teacher and dense_task_weight:
            raise ValueError(f"dense_task_weight is {dense_task_weight}, but a frozen teacher is not trained; set it to 0")
        if teacher_backbone and not frozen_teacher:
            raise ValueError(
                f"teacher_backbone is a {teacher_backbone.get('type')}, but frozen_teacher is {frozen_teacher!r}; expected the "
                "checkpoint of a model with that backbone: set model.distillation.frozen_teacher"
            )
        self.weight, self.temperature, self.teacher_backbone = weight, temperature, teacher_backbone
        self.frozen_teacher, self.dense_task_weight = frozen_teacher, dense_task_weight

    def forward(self, student: Tensor | PairLogits, teacher: Tensor | PairLogits) -> Tensor:
        """Logits [B, C] of both -> mean over the batch, weighted; summed over contrast, match and words of pairs.

        Raises:
            ValueError: If they do not score the same answers.
        """
        parts = [self._divergence(*both) for both in zip(parts_of(student), parts_of(teacher), strict=True)]
        return self.weight * self.temperature**2 * torch.stack(parts).sum()

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape != teacher.shape:
            raise ValueError(
                f"the teacher's logits are {list(teacher.shape)}, the student's {list(student.shape)}; expected scores of the "
                "same answers: give distillation.teacher_backbone the head of model.backbone"
            )
        student = log_softmax(student.float() / self.temperature, -1)
        teacher = log_softmax(teacher.detach().float() / self.temperature, -1)
        return kl_div(student, teacher, reduction="batchmean", log_target=True)
