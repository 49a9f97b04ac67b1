"""The official accuracy of VQAv2."""

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from smarttrim_mm.evaluation.sample_fields import merge_unique, predicted_answers
from smarttrim_mm.evaluation.vqa_normalisation import vqa_score
from smarttrim_mm.registry import METRICS


@METRICS.register_module()
class VQAAccuracy(BaseMetric):
    """Official accuracy of VQAv2 (https://visualqa.org/evaluation.html), in 0-1 where the official tool prints percent.

    Metrics: ``accuracy`` over all questions, and ``accuracy_<type>`` for each answer type ('yes/no' as ``yes_no``) over the
    questions of that type, where the data set knows the types. A question scores as in
    :func:`~smarttrim_mm.evaluation.vqa_normalisation.vqa_score`. The arguments are those of mmengine's `BaseMetric`.
    """

    default_prefix = "vqa"

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Scores the questions of a batch, one result an item.

        Args:
            data_batch: Unused.
            data_samples: Dicts with ``pred_scores`` [Q, C], ``question_ids`` [Q], ``gt_answers`` (Q lists of texts, ten each
                in VQAv2) and, where known, ``answer_types`` (Q texts).

        Raises:
            ValueError: If a field is missing, has not Q values or a question no answers, or if the data set does not name
                each of the C classes.
        """
        for sample in data_samples:
            typed = ("answer_types",) if "answer_types" in sample else ()
            predictions = predicted_answers(self, sample, "question_ids", "gt_answers", *typed)
            types = sample["answer_types"] if typed else [None] * len(predictions)
            rows = zip(sample["question_ids"], predictions, sample["gt_answers"], types, strict=True)
            self.results.append([(int(i), (vqa_score(prediction, answers), kind)) for i, prediction, answers, kind in rows])

    def compute_metrics(self, results: list[list[tuple[int, tuple[float, str | None]]]]) -> dict[str, float]:
        """Averages over questions, each counted once.

        Args:
            results: For each item, its questions' ids, scores and types.

        Returns:
            The metrics named in the class's docstring, each 0-1.

        Raises:
            ValueError: If a question has two different results.
        """
        scores: dict[str, list[float]] = {}
        for score, kind in merge_unique(results, "question").values():
            for name in ("accuracy", *([f"accuracy_{kind.replace('/', '_')}"] if kind else [])):
                scores.setdefault(name, []).append(score)
        return {name: sum(values) / len(values) for name, values in scores.items()}
