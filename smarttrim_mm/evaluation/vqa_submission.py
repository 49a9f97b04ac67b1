"""The file of answers that the VQAv2 server scores."""

import json
from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from smarttrim_mm.evaluation.sample_fields import merge_unique, predicted_answers
from smarttrim_mm.registry import METRICS
from smarttrim_mm.utils.checkpoint_io import write_atomically


@METRICS.register_module()
class VQASubmission(BaseMetric):
    """Writes ``[{"question_id": int, "answer": str}, ...]`` for splits without public answers; it measures nothing.

    The file has each question once, sorted by id (format: https://visualqa.org/evaluation.html). Only the main process
    writes it.

    Args:
        out_file: The JSON file to write; its folder is made.
        **kwargs: Further arguments of mmengine's `BaseMetric`.
    """

    default_prefix = "submission"

    def __init__(self, *, out_file: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.out_file = out_file

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Notes the answers of a batch, one result an item.

        Args:
            data_batch: Unused.
            data_samples: Dicts with ``pred_scores`` [Q, C] and ``question_ids`` [Q].

        Raises:
            ValueError: If a field is missing or has not Q values, or if the data set does not name each of the C classes.
        """
        for sample in data_samples:
            answers = predicted_answers(self, sample, "question_ids")
            self.results.append([(int(i), answer) for i, answer in zip(sample["question_ids"], answers, strict=True)])

    def compute_metrics(self, results: list[list[tuple[int, str]]]) -> dict[str, float]:
        """Writes the file; there is no metric.

        Args:
            results: For each item, its questions' ids and answers.

        Raises:
            ValueError: If there are no questions, or a question has two different answers; no file is written then.
        """
        answers = merge_unique(results, "question")
        if not answers:
            raise ValueError(f"no questions to write to {self.out_file}: expected at least one; check the data set's split")
        content = [{"question_id": question_id, "answer": answers[question_id]} for question_id in sorted(answers)]
        write_atomically(self.out_file, (json.dumps(content) + "\n").encode())
        return {}
