"""Accuracy of answers in words."""

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from smarttrim_mm.evaluation.sample_fields import merge_unique, predicted_answers, require_fields
from smarttrim_mm.registry import METRICS


@METRICS.register_module()
class AnswerAccuracy(BaseMetric):
    """Share of questions whose answer is, letter for letter, the right one (``accuracy``), 0-1.

    It is GQA's official accuracy (``eval.py`` of Hudson and Manning, arXiv 1902.09506) on a balanced split, and VSR's. The
    arguments are those of mmengine's `BaseMetric`.
    """

    default_prefix = "answer"

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Compares the answers of a batch, one result an item.

        Args:
            data_batch: Unused.
            data_samples: Dicts with ``question_ids`` [Q], ``gt_answers`` (Q lists, of one answer each), and ``pred_scores``
                [Q, C], whose classes the data set names, or, of one question, ``pred_answer``.

        Raises:
            ValueError: If a field is missing or has not Q values, a question has several answers, or the data set does not
                name each of the C classes.
        """
        for sample in data_samples:
            if "pred_answer" in sample:
                require_fields(self, sample, ("question_ids", "gt_answers"))
                predictions = [sample["pred_answer"]]
            else:
                predictions = predicted_answers(self, sample, "question_ids", "gt_answers")
            rows = []
            for question, prediction, right in zip(sample["question_ids"], predictions, sample["gt_answers"], strict=True):
                if len(set(right)) != 1:
                    raise ValueError(
                        f"question {int(question)} has the answers {list(right)!r}: expected one; VQAAccuracy judges by several"
                    )
                rows.append((int(question), prediction == right[0]))
            self.results.append(rows)

    def compute_metrics(self, results: list[list[tuple[int, bool]]]) -> dict[str, float]:
        """Averages over questions, each counted once.

        Args:
            results: For each item, its questions' ids and whether they are right.

        Raises:
            ValueError: If a question has two different results.
        """
        right = merge_unique(results, "question")
        return {"accuracy": sum(right.values()) / len(right)} if right else {}
