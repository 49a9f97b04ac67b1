"""What the metrics ask of a data sample's fields, with errors that name them."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from mmengine.evaluator import BaseMetric

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def require_fields(metric: BaseMetric, sample: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Raises ``ValueError`` if a data sample lacks a field that a metric reads."""
    missing = [field for field in fields if field not in sample]
    if missing:
        raise ValueError(
            f"{type(metric).__name__} reads {', '.join(missing)}, but the data sample of image {sample.get('image_id')} has "
            f"only {sorted(sample)}: let the data set give it and the pipeline keep it, or take the metric out"
        )


def predicted_classes(metric: BaseMetric, sample: Mapping[str, Any], *per_question: str) -> list[int]:
    """Reads the predictions of a data sample and checks its other fields against them.

    Args:
        metric: Who asks; named in errors.
        sample: Has ``pred_scores`` [Q, C] and the fields ``per_question``.
        per_question: Fields with one value a question.

    Returns:
        The class of the highest score of each of the Q questions.

    Raises:
        ValueError: If a field is missing, has not Q values, or a score is NaN.
    """
    require_fields(metric, sample, ("pred_scores", *per_question))
    scores = sample["pred_scores"]
    where = f"of image {sample.get('image_id')}"
    if scores.ndim != 2 or not scores.shape[1]:
        raise ValueError(f"pred_scores {tuple(scores.shape)} {where}: expected [questions, classes]")
    for field in per_question:
        if len(sample[field]) != len(scores):
            raise ValueError(
                f"{field} {where} has {len(sample[field])} values, pred_scores is {tuple(scores.shape)}: expected one value a "
                "question; correct the data set or its pipeline"
            )
    if scores.isnan().any():
        raise ValueError(f"pred_scores {where} has NaN: expected numbers; look for the step of the model that gives NaN")
    return scores.argmax(-1).tolist()


def class_names(metric: BaseMetric) -> list[str]:
    """The names of the classes of the data set that a metric evaluates.

    Raises:
        ValueError: If the data set does not name its classes.
    """
    names = (metric.dataset_meta or {}).get("classes")
    if not names:
        raise ValueError(
            f"{type(metric).__name__} reads dataset_meta['classes'], which is {names!r}: give the data set classes"
        )
    return list(names)


def predicted_answers(metric: BaseMetric, sample: Mapping[str, Any], *per_question: str) -> list[str]:
    """As :func:`predicted_classes`, but the names of the classes; or ``pred_answers``, what a model wrote, if it is there.

    Raises:
        ValueError: As there, and if the data set does not name each of the C classes.
    """
    if "pred_answers" in sample:
        require_fields(metric, sample, per_question)
        written = list(sample["pred_answers"])
        for field in per_question:
            if len(sample[field]) != len(written):
                raise ValueError(
                    f"{field} of image {sample.get('image_id')} has {len(sample[field])} values and pred_answers "
                    f"{len(written)}: expected one value a question; correct the data set or its pipeline"
                )
        return written
    predictions, names = predicted_classes(metric, sample, *per_question), class_names(metric)
    if sample["pred_scores"].shape[1] != len(names):
        raise ValueError(
            f"pred_scores {tuple(sample['pred_scores'].shape)} of image {sample.get('image_id')}: expected {len(names)} "
            "columns, one for each of dataset_meta['classes']; evaluate with the data set that the model was trained for"
        )
    return [names[prediction] for prediction in predictions]


def right_answer(sample: Mapping[str, Any], question: int, classes: Sequence[str] | None) -> str | None:
    """The answer of a data sample's question in words; of several people's, the most frequent; None where it is not known.

    Args:
        sample: Has ``answers``, ``gt_answers``, ``targets`` or, of an image without questions, ``gt_label``, or none of them.
        question: Which of its questions.
        classes: Names of the classes; None: the data set does not name them.
    """
    if "answers" in sample:
        return sample["answers"][question]
    if "gt_answers" in sample:
        return Counter(sample["gt_answers"][question]).most_common(1)[0][0]
    if classes and "targets" in sample:
        return classes[int(sample["targets"][question])]
    return classes[int(sample["gt_label"])] if classes and "gt_label" in sample else None


def merge_unique(results: Iterable[Iterable[tuple[Key, Value]]], what: str) -> dict[Key, Value]:
    """Joins the results of all items; what several ranks evaluated alike counts once.

    Args:
        results: For each item, pairs of an identifier and a value.
        what: What is identified, for the error.

    Returns:
        The value of each identifier, in the order of the first occurrences.

    Raises:
        ValueError: If an identifier has two different values.
    """
    merged: dict[Key, Value] = {}
    for result in results:
        for key, value in result:
            if merged.setdefault(key, value) != value:
                raise ValueError(
                    f"{what} {key!r} has two results, {merged[key]!r} and {value!r}: expected one; look for an identifier that "
                    "the data set repeats, or for a model that answers the same question in two ways"
                )
    return merged
