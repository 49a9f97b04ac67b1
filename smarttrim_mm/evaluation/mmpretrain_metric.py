"""mmpretrain's metrics on the predictions of this package's models."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from smarttrim_mm.evaluation.sample_fields import class_names, predicted_classes
from smarttrim_mm.registry import METRICS

_PREDICTIONS = ("pred_scores", "pred_caption", "pred_answer", "pred_bboxes", "pred_label", "pred_score", "scores")


@METRICS.register_module()
class MMPretrainMetric(BaseMetric):
    """A metric of mmpretrain on our data samples; its names and scales are mmpretrain's.

    mmpretrain's own fields (``gt_answer``, ``gt_label``, ``gt_bboxes``, ``question_id`` ...) come from the data set through
    `FromMMPretrain`. From what our models predict it gets ``pred_score`` [C], ``pred_label`` [1] and, where the data set names
    its classes, ``pred_answer``; captions stay ``pred_caption``. In retrieval, an image's row of scores becomes ``pred_score``
    [M] and its own texts ``gt_label``: recalls of texts for images, which mmpretrain calls retrieval image to text.

    Args:
        metric: Config of the metric, ``type='mmpretrain.VQAAcc'``.
    """

    default_prefix = "mmpretrain"  # which mmengine wants to see; results have the metric's own

    def __init__(self, *, metric: Mapping[str, Any]) -> None:
        super().__init__()
        self.metric: BaseMetric = METRICS.build(dict(metric))

    @property
    def dataset_meta(self) -> dict | None:
        """Of the data set that is evaluated."""
        return self.metric.dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict) -> None:
        self.metric.dataset_meta = dataset_meta

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Hands a batch to the metric.

        Args:
            data_batch: Passed on.
            data_samples: Dicts with our models' predictions, of one question each.

        Raises:
            ValueError: If a sample has no prediction or several questions, or answers are compared as words and the data set
                does not name its classes.
        """
        self.metric.process(data_batch, [self._translated(sample) for sample in data_samples])

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The metric's own, of its results."""
        return self.metric.compute_metrics(results)

    def evaluate(self, size: int) -> dict[str, float]:
        """Evaluates the metric over all ranks.

        Args:
            size: Items of the data set.
        """
        found = self.metric.evaluate(size)  # a tensor cannot be written to a file of metrics
        return {name: float(value) if isinstance(value, torch.Tensor) else value for name, value in found.items()}

    def _translated(self, sample: dict) -> dict:
        name = type(self.metric).__name__
        if not any(field in sample for field in _PREDICTIONS):
            raise ValueError(
                f"the data sample of image {sample.get('image_id')} has no prediction, but only {sorted(sample)}: mmpretrain's "
                f"{name} expects one of {', '.join(_PREDICTIONS)}; evaluate what the model predicts"
            )
        if "pred_scores" not in sample:
            if "scores" not in sample:
                return sample
            own = [i for i, image_id in enumerate(sample["caption_image_ids"]) if image_id == sample["image_id"]]
            return {**sample, "pred_score": sample["scores"], "gt_label": torch.tensor(own)}
        (predicted, *others) = predicted_classes(self, sample)
        if others:
            raise ValueError(
                f"image {sample.get('image_id')} has {len(others) + 1} questions: mmpretrain's {name} expects one an item; "
                "give our data set group_questions=False, or use a metric of this package"
            )
        found = {**sample, "pred_score": sample["pred_scores"][0], "pred_label": torch.tensor([predicted])}
        if "pred_answer" not in sample and ("gt_answer" in sample or (self.dataset_meta or {}).get("classes")):
            found["pred_answer"] = class_names(self)[predicted]
        return found
