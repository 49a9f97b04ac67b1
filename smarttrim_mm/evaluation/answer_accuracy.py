"""Accuracy of answers chosen from a list of classes."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from smarttrim_mm.registry import METRICS


@METRICS.register_module()
class AnswerAccuracy(BaseMetric):
    """Share of questions whose highest score is the right answer's, 0-1; also for yes/no and for other answers apart.

    Each item (an image with its questions) gives one result: mmengine cuts what it gathers over the ranks to as many
    results as the data set has items.

    Args:
        prefix: Prefix of the metrics' names.
        **kwargs: Further arguments of mmengine's `BaseMetric`.
    """

    default_prefix = "answer"

    def __init__(self, *, prefix: str | None = None, **kwargs: Any) -> None:
        super().__init__(prefix=prefix, **kwargs)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Counts the right answers of a batch.

        Args:
            data_batch: Unused.
            data_samples: Dicts with ``pred_scores`` [Q, C], ``targets`` [Q] and ``answers`` (Q texts).

        Raises:
            ValueError: If there are not as many predictions as targets.
        """
        for sample in data_samples:
            predicted, targets = sample["pred_scores"].argmax(-1), sample["targets"]
            if predicted.shape != targets.shape:
                raise ValueError(
                    f"pred_scores {tuple(sample['pred_scores'].shape)} of image {sample['image_id']}: expected a row "
                    f"for each of its {len(targets)} targets"
                )
            right = (predicted.cpu() == targets.cpu()).long()
            yes_no = torch.tensor([answer in ("yes", "no") for answer in sample["answers"]])
            kinds = {"accuracy": torch.ones_like(yes_no), "accuracy_yes_no": yes_no, "accuracy_other": ~yes_no}
            self.results.append({kind: (right[rows].sum().item(), rows.sum().item()) for kind, rows in kinds.items()})

    def compute_metrics(self, results: list[dict[str, tuple[int, int]]]) -> dict[str, float]:
        """Divides right answers by questions; a kind without questions is left out.

        Args:
            results: For each item and kind, right answers and questions.

        Returns:
            ``accuracy``, ``accuracy_yes_no`` and ``accuracy_other``, each 0-1.
        """
        metrics = {}
        for kind in ("accuracy", "accuracy_yes_no", "accuracy_other"):
            right, asked = (sum(result[kind][i] for result in results) for i in (0, 1))
            if asked:
                metrics[kind] = right / asked
        return metrics
