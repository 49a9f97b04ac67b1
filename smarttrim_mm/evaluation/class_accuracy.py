"""Accuracy of a classification, overall and by class."""

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from smarttrim_mm.evaluation.sample_fields import class_names, predicted_classes
from smarttrim_mm.registry import METRICS


@METRICS.register_module()
class ClassAccuracy(BaseMetric):
    """Share of questions with the right class (``accuracy``), also of each class (``accuracy_<name>``), 0-1.

    For tasks with few named classes, such as SNLI-VE (Xie et al., 2019). The arguments are those of mmengine's
    `BaseMetric`.
    """

    default_prefix = "class"

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Compares the predictions of a batch, one result an item.

        Args:
            data_batch: Unused.
            data_samples: Dicts with ``pred_scores`` [Q, C] and ``targets`` [Q], indices into the C classes.

        Raises:
            ValueError: If a field is missing or has not Q values, or if a target is no class of the data set.
        """
        names = class_names(self)
        for sample in data_samples:
            rows = list(zip(predicted_classes(self, sample, "targets"), map(int, sample["targets"]), strict=True))
            for _, target in rows:
                if not 0 <= target < len(names):
                    raise ValueError(
                        f"target {target} of image {sample.get('image_id')}: expected 0 to {len(names) - 1}, as "
                        f"dataset_meta['classes'] has {len(names)} names; leave out what has no label"
                    )
            self.results.append([(names[target], prediction == target) for prediction, target in rows])

    def compute_metrics(self, results: list[list[tuple[str, bool]]]) -> dict[str, float]:
        """Averages over questions; a class without questions is left out.

        Args:
            results: For each item, its questions' classes and whether they are right.

        Returns:
            ``accuracy`` and, for each class, ``accuracy_<name>``, each 0-1.
        """
        right: dict[str, list[bool]] = {}
        for name, hit in (row for result in results for row in result):
            right.setdefault("accuracy", []).append(hit)
            right.setdefault(f"accuracy_{name}", []).append(hit)
        return {name: sum(hits) / len(hits) for name, hits in right.items()}
