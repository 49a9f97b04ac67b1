"""Do two models answer differently well? A paired comparison on the questions that both were asked."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """Accuracy of one model minus that of another, on the same questions.

    Attributes:
        difference: In 0-1; above 0 where the first is better.
        standard_error: Of the difference. Questions about one image count as one draw, since they are right or wrong
            together.
        questions: Number of questions.
        images: Number of images.
    """

    difference: float
    standard_error: float
    questions: int
    images: int

    @property
    def ties(self) -> bool:
        """Whether the difference is within two standard errors."""
        return abs(self.difference) <= 2 * self.standard_error


def compare(first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]]) -> Comparison:
    """Compares two models by the predictions that ``tools/test.py --out`` wrote.

    Args:
        first: Predictions of one model: ``question_id``, ``image_id``, ``predicted_answer`` and ``answer`` of each.
        second: Those of the other.

    Returns:
        The comparison, first minus second.

    Raises:
        ValueError: If the models were not asked the same questions, or no question is twice answered.
    """
    return compare_seeds([(first, second)])


def compare_seeds(pairs: Sequence[tuple[Iterable[Mapping[str, Any]], Iterable[Mapping[str, Any]]]]) -> Comparison:
    """Compares two models that were trained with several seeds, seed by seed on the same questions.

    A question's difference is the mean over the seeds, so that the standard error is that of drawing other questions, with
    these seeds; how seeds differ is another matter.

    Args:
        pairs: For each seed, predictions of the first model and of the second, as for :func:`compare`.

    Returns:
        The comparison, first minus second.

    Raises:
        ValueError: If the models were not all asked the same questions, or there are none.
    """
    differences: dict[tuple[Any, Any], float] = defaultdict(float)
    asked = None
    for pair in pairs:
        first, second = (_right(predictions) for predictions in pair)
        for right in (first, second):
            asked = right.keys() if asked is None else asked
            if asked != right.keys():
                alone = sorted(asked ^ right.keys())
                raise ValueError(
                    f"{len(alone)} questions were asked of one model only, the first is question_id {alone[0][1]} of image "
                    f"{alone[0][0]}; test both on the same split"
                )
        for key, value in first.items():
            differences[key] += (int(value) - int(second[key])) / len(pairs)
    if not differences:
        raise ValueError("there are no predictions to compare; test both models first")
    count = len(differences)
    mean = sum(differences.values()) / count
    residuals: dict[Any, float] = defaultdict(float)
    for (image, _), difference in differences.items():
        residuals[image] += difference - mean
    images = len(residuals)
    correction = images / (images - 1) if images > 1 else 1.0
    error = sqrt(correction * sum(value**2 for value in residuals.values())) / count
    return Comparison(mean, error, count, images)


def _right(predictions: Iterable[Mapping[str, Any]]) -> dict[tuple[int, int], bool]:
    return {(p["image_id"], p["question_id"]): p["predicted_answer"] == p["answer"] for p in predictions}
