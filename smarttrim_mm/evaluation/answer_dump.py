"""The answers themselves, question by question."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from smarttrim_mm.evaluation.sample_fields import right_answer
from smarttrim_mm.models.all_pairs import UNSCORED
from smarttrim_mm.registry import METRICS

_BEST = 10  # texts of an image in retrieval


@METRICS.register_module()
class AnswerDump(BaseMetric):
    """Collects one record a question of all ranks, in the order of the data set; it measures nothing.

    Attributes:
        answers: After the evaluation, on the main process: dicts with ``question_id``, ``image_id``, ``question``,
            ``prediction`` (a class index; ``predicted_answer`` its name, where the data set names its classes), ``score``
            (its probability, 0-1), and where known ``answer`` (of several people's, the most frequent), ``identifier`` (of
            NLVR2), ``multiply_adds``, and what the data set's ``facts`` say of the question, under their own names. Of phrases,
            also ``predicted_box`` and ``box`` (left, top, right, bottom in pixels), and ``prediction`` is of the first
            coordinate. Of captions, ``predicted_answer`` is the caption, and ``references`` those of people; there is no
            ``prediction`` and no ``score``. Of retrieval, one an image: ``image_id``, and
            ``text_ids`` and ``scores`` of the ten best texts that were scored, best first. Of mmpretrain's
            classifiers, one an image, without a question: ``image_id`` (its ``sample_idx``), ``image`` (its file) and the rest.
    """

    default_prefix = "answers"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.answers: list[dict[str, Any]] = []

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Notes the predictions of a batch, one result an item.

        Args:
            data_batch: Unused.
            data_samples: Dicts with ``image_id``, and ``pred_scores`` [Q, C], ``question_ids`` [Q] and ``questions``, or, of
                retrieval, ``scores`` [M] and ``caption_ids`` [M], or, of captions, ``pred_caption``, or mmpretrain's
                ``pred_score`` [C] and ``pred_label`` [1].

        Raises:
            ValueError: If a question's ``facts`` have a name of the record's own fields.
        """
        classes = (self.dataset_meta or {}).get("classes")
        for sample in data_samples:
            if "caption_ids" in sample:
                scored = int((sample["scores"] != UNSCORED).sum())
                best = sample["scores"].topk(min(_BEST, scored))
                ids = [sample["caption_ids"][i] for i in best.indices.tolist()]
                self.results.append([{"image_id": sample["image_id"], "text_ids": ids, "scores": best.values.tolist()}])
                continue
            spent = sample.get("trim", {}).get("multiply_adds")
            if "pred_caption" in sample:
                record = {"image_id": sample["image_id"], "predicted_answer": sample["pred_caption"]}
                if "gt_answers" in sample:
                    record["references"] = list(sample["gt_answers"][0])
                self.results.append([record if spent is None else {**record, "multiply_adds": float(spent[0])}])
                continue
            if "pred_label" in sample:
                label = int(sample["pred_label"])
                record = {"image_id": sample.get("sample_idx"), "image": sample.get("img_path"), "prediction": label}
                record["score"] = float(sample["pred_score"][label])
                if classes is not None:
                    record["predicted_answer"] = classes[label]
                    if "gt_label" in sample:
                        record["answer"] = classes[int(sample["gt_label"])]
                self.results.append([record if spent is None else {**record, "multiply_adds": float(spent[0])}])
                continue
            scores, predictions = sample["pred_scores"].max(-1)
            records = []
            for i, prediction in enumerate(predictions.tolist()):
                record = {
                    "question_id": int(sample["question_ids"][i]),
                    "image_id": sample["image_id"],
                    "question": sample["questions"][i],
                    "prediction": prediction,
                    "score": scores[i].item(),
                }
                if classes is not None:
                    record["predicted_answer"] = classes[prediction]
                answer = right_answer(sample, i, classes)
                if answer is not None:
                    record["answer"] = answer
                if "identifiers" in sample:
                    record["identifier"] = sample["identifiers"][i]
                for name, field in (("predicted_box", "pred_bboxes"), ("box", "gt_bboxes")):
                    if field in sample:
                        record[name] = sample[field][i].tolist()
                if spent is not None:
                    record["multiply_adds"] = float(spent[i])
                if "facts" in sample:
                    _add_facts(record, sample["facts"][i])
                records.append(record)
            self.results.append(records)

    def compute_metrics(self, results: list[list[dict[str, Any]]]) -> dict[str, float]:
        """Keeps the records of all ranks; there is no metric."""
        self.answers = [record for records in results for record in records]
        return {}


def _add_facts(record: dict[str, Any], facts: Mapping[str, Any]) -> None:
    taken = sorted(record.keys() & facts.keys())
    if taken:
        raise ValueError(
            f"facts of question {record['question_id']} has {', '.join(taken)}, which the record of its answer has too: "
            "expected other names; rename them in the data set"
        )
    record.update(facts)
