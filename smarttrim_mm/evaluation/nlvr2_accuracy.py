"""Accuracy and consistency of NLVR2."""

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from smarttrim_mm.evaluation.sample_fields import merge_unique, predicted_classes
from smarttrim_mm.registry import METRICS


@METRICS.register_module()
class NLVR2Accuracy(BaseMetric):
    """Shares of right examples (``accuracy``) and of sentences right on all their image pairs (``consistency``), 0-1.

    As ``nlvr2/eval/metrics.py`` of lil-lab/nlvr. The arguments are those of mmengine's `BaseMetric`.
    """

    default_prefix = "nlvr2"

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Compares the predictions of a batch, one result an item.

        Args:
            data_batch: Unused.
            data_samples: Dicts with ``pred_scores`` [Q, 2] (false, true), ``targets`` [Q] (0 or 1) and ``identifiers``
                (Q texts: split, set, pair and sentence, as in 'dev-850-0-0').

        Raises:
            ValueError: If a field is missing, has not Q values, or is not as described.
        """
        for sample in data_samples:
            predictions = predicted_classes(self, sample, "targets", "identifiers")
            if sample["pred_scores"].shape[1] != 2:
                raise ValueError(
                    f"pred_scores {tuple(sample['pred_scores'].shape)} of image {sample.get('image_id')}: expected 2 columns, "
                    "false and true; use a head with two classes"
                )
            rows = zip(sample["identifiers"], predictions, sample["targets"], strict=True)
            self.results.append([(_checked(identifier), prediction == int(target)) for identifier, prediction, target in rows])

    def compute_metrics(self, results: list[list[tuple[str, bool]]]) -> dict[str, float]:
        """Averages over examples and over sentences.

        Args:
            results: For each item, its examples' identifiers and whether they are right.

        Returns:
            ``accuracy`` and ``consistency``, each 0-1.

        Raises:
            ValueError: If an example has two different results.
        """
        examples = merge_unique(results, "example")
        if not examples:
            return {}
        sentences: dict[tuple[str, str, str], bool] = {}
        for identifier, right in examples.items():
            split, image_set, _pair, sentence = identifier.split("-")
            key = (split, image_set, sentence)
            sentences[key] = sentences.get(key, True) and right
        return {
            "accuracy": sum(examples.values()) / len(examples),
            "consistency": sum(sentences.values()) / len(sentences),
        }


def _checked(identifier: str) -> str:
    if len(identifier.split("-")) != 4:
        raise ValueError(f"identifier {identifier!r}: expected split, set, pair and sentence, as in 'dev-850-0-0'")
    return identifier
