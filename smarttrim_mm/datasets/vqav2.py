"""VQAv2: open questions about COCO images, ten answers each."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from smarttrim_mm.datasets.vision_language import VisionLanguageDataset, check_split, check_text, field, take_questions
from smarttrim_mm.registry import DATASETS

# of each split: its name in the files' names, its folder of images
_SPLITS = {
    "train": ("train2014", "train2014"),
    "val": ("val2014", "val2014"),
    "test-dev": ("test-dev2015", "test2015"),
    "test": ("test2015", "test2015"),
}
_PUBLISHED = {"train": (82_783, 443_757), "val": (40_504, 214_354), "test": (81_434, 447_793)}
_ANSWERS = 10


@DATASETS.register_module()
class VQAv2(VisionLanguageDataset):
    """VQAv2 (Goyal et al., arXiv 1612.00837) from its official files, one item an image with its questions.

    A record has ``img_path``, ``image_id`` (COCO's), ``questions``, ``question_ids`` and, but for the test splits,
    ``gt_answers`` (ten strings a question), ``answer_types`` and ``soft_targets``, float [Q, C]: 0, 0.3, 0.6, 0.9 or 1 for
    a class that none, one, two, three, or at least four of the ten normalised answers are. C is the vocabulary's length, and
    ``metainfo['classes']`` the vocabulary. Questions without an answer in the vocabulary are left out of training only.

    METER's public conversion counts the answers as they are written, without normalising them.

    Args:
        split: 'train', 'val', 'test-dev' or 'test', or a list of those that are joined; METER trains on train and val.
        data_root: Folder with ``v2_OpenEnded_mscoco_*_questions.json``, ``v2_mscoco_*_annotations.json``, the vocabulary,
            and ``train2014/``, ``val2014/`` and ``test2015/`` with COCO's images.
        vocabulary: A JSON list of the answers in the order of the classes, in ``data_root``;
            ``tools/dataset_converters/vqav2_answers.py`` writes it.
        num_classes: Answers that the vocabulary must hold.
        **kwargs: Further arguments of `VisionLanguageDataset`; ``test_mode`` is True unless 'train' is among the splits.

    Raises:
        FileNotFoundError: If a file or an image is missing.
        ValueError: If a file's content is not as published, a question is empty, or the vocabulary has another length.
    """

    METAINFO = {"dataset_name": "VQAv2"}
    LAYOUT = (
        "v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json, the answer vocabulary "
        "(tools/dataset_converters/vqav2_answers.py makes it), and train2014/, val2014/ and test2015/ with the images"
    )

    def __init__(
        self,
        *,
        split: str | Sequence[str],
        data_root: str = "data/vqav2",
        vocabulary: str = "answers.json",
        num_classes: int = 3129,
        **kwargs: Any,
    ) -> None:
        self.splits = [split] if isinstance(split, str) else list(split)
        for name in self.splits:
            check_split(name, _SPLITS)
        self.split = " + ".join(self.splits)
        metainfo = {
            "classes": self._read_vocabulary(Path(data_root) / vocabulary, num_classes),
            **(kwargs.pop("metainfo", None) or {}),
        }
        super().__init__(
            data_root=data_root, metainfo=metainfo, test_mode=kwargs.pop("test_mode", "train" not in self.splits), **kwargs
        )

    def published_counts(self) -> dict[str, int]:
        """The official numbers of the joined splits; none for test-dev."""
        if not set(self.splits) <= _PUBLISHED.keys():
            return {}
        images, questions = zip(*(_PUBLISHED[name] for name in self.splits), strict=True)
        return {"images": sum(images), "questions": sum(questions)}

    def load_records(self) -> list[dict]:
        """Reads the questions of the splits, with their answers where these are known."""
        records = self.group(row for name in self.splits for row in self._read_split(name))
        return list(self._scored(records))

    def complete(self, record: dict, idx: int) -> dict:
        """Adds ``soft_targets``, float [Q, C]: records hold only what is not zero."""
        scores = record.pop("answer_scores", None)
        if scores is not None:
            record["soft_targets"] = np.zeros((len(scores), len(self._metainfo["classes"])), np.float32)
            for targets, known in zip(record["soft_targets"], scores, strict=True):
                targets[list(known)] = list(known.values())
        return record

    def _read_split(self, split: str) -> Iterator[dict]:
        name, folder = _SPLITS[split]
        root = Path(self.data_root)
        questions = root / f"v2_OpenEnded_mscoco_{name}_questions.json"
        annotations = None if split.startswith("test") else root / f"v2_mscoco_{name}_annotations.json"
        answered = {} if annotations is None else self._read_annotations(annotations)

        def parse(index: int, row: Any) -> dict:
            where = f"{questions}, row {index}"
            image_id, question_id = field(row, "image_id", int, where), field(row, "question_id", int, where)
            where = f"{questions}: question {question_id} of image {image_id}"
            record = {
                "img_path": str(root / folder / f"COCO_{folder}_{image_id:012d}.jpg"),
                "image_id": image_id,
                "questions": [check_text(field(row, "question", str, where), where)],
                "question_ids": [question_id],
            }
            if annotations is None:
                return record
            if question_id not in answered:
                raise ValueError(
                    f"{where} has no answers in {annotations}: expected the two files of one split; fetch both again"
                )
            return {**record, **_answers(answered[question_id], image_id, f"{annotations}: question {question_id}")}

        return self.parsed(self.read_list(questions, "questions"), parse)

    def _read_annotations(self, path: Path) -> dict[int, dict]:
        def parse(index: int, row: Any) -> dict:
            field(row, "question_id", int, f"{path}, row {index}")
            return row

        return {row["question_id"]: row for row in self.parsed(self.read_list(path, "annotations"), parse)}

    def _scored(self, records: list[dict]) -> Iterator[dict]:
        """Replaces the answers of images by scores; in training, leaves out what has none."""
        from smarttrim_mm.evaluation.vqa_normalisation import normalise_answer

        normalise = lru_cache(None)(normalise_answer)  # the same answers come again and again
        number = {answer: index for index, answer in enumerate(self._metainfo["classes"])}
        for record in records:
            if "gt_answers" in record:
                counts = [Counter(map(normalise, answers)) for answers in record["gt_answers"]]
                record["answer_scores"] = [
                    {number[answer]: min(1.0, 0.3 * count) for answer, count in counter.items() if answer in number}
                    for counter in counts
                ]
                if not self.test_mode:
                    record = take_questions(record, [i for i, scores in enumerate(record["answer_scores"]) if scores])
            if record["questions"]:
                yield record

    @classmethod
    def _read_vocabulary(cls, path: Path, num_classes: int) -> tuple[str, ...]:
        expected = "expected a list of different answers; make it with `python tools/dataset_converters/vqav2_answers.py`"
        answers = cls.read_json(path, expected)
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(f"{path} holds {str(answers)[:60]!r}: {expected}")
        if len(answers) != num_classes:
            raise ValueError(f"{path} holds {len(answers)} answers, but num_classes={num_classes}: correct one of the two")
        repeated = [answer for answer, count in Counter(answers).items() if count > 1]
        if repeated:
            raise ValueError(f"{path} holds {repeated[0]!r} more than once: {expected}")
        return tuple(answers)


def _answers(row: dict, image_id: int, where: str) -> dict:
    """The fields of a record that come from an annotation."""
    if field(row, "image_id", int, where) != image_id:
        raise ValueError(
            f"{where} is about image {row['image_id']}, but about image {image_id} in the file of questions: expected the two "
            "files of one split; fetch both again"
        )
    answers = [field(answer, "answer", str, where) for answer in field(row, "answers", list, where)]
    if len(answers) != _ANSWERS:
        raise ValueError(f"{where} has {len(answers)} answers, expected {_ANSWERS}: fetch the file again")
    return {"gt_answers": [answers], "answer_types": [field(row, "answer_type", str, where)]}
