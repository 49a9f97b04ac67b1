"""easy-VQA: 64 px pictures of one coloured shape, with template questions and 13 answers."""

import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smarttrim_mm.datasets.vision_language import VisionLanguageDataset, check_split, check_text
from smarttrim_mm.registry import DATASETS

_FOLDERS = {"train": "train", "val": "train", "test": "test"}
_FIRST_QUESTION_ID = {"train": 0, "test": 1_000_000}
_ANSWERS = 10  # a question in VQAv2, whose metric reads them; the template's one answer stands for people who all agree
_EXPECTED = "expected a list of [question, answer, image id]; fetch the file again"


@DATASETS.register_module()
class EasyVQA(VisionLanguageDataset):
    """easy-VQA (https://github.com/vzhou842/easy-VQA, MIT), one item an image with its questions.

    The official files hold 4,000 training images with 38,575 questions and 1,000 test images with 9,673. ``val`` is a
    fixed random part of the training images, which ``train`` then leaves out; ``test`` is the official test split.

    The small twin of `VQAv2`: a record has ``img_path``, ``image_id``, ``questions``, ``gt_answers`` (the one answer ten times)
    and ``answer_types`` ('yes/no' or 'other') as there, ``answers``, ``targets`` (indices into ``metainfo['classes']``), and
    ``question_ids``: the question's row in its official file, plus 1,000,000 in the test file.

    Args:
        split: 'train', 'val' or 'test'.
        data_root: Folder with ``answers.txt`` and, under ``train`` and ``test``, ``questions.json`` and
            ``images/ID.png``; None: the files of the installed package ``easy-vqa``.
        num_val_images: Images that ``val`` takes from the training images; 0: ``train`` keeps all.
        val_seed: Seed of that choice.
        **kwargs: Further arguments of `VisionLanguageDataset`, e.g. ``questions_per_image``, and of mmengine's
            `BaseDataset`, e.g. ``pipeline``.

    Raises:
        FileNotFoundError: If a file or an image is missing.
        ValueError: If an argument or a file's content is not as described, if a question is empty or an answer unknown.
    """

    METAINFO = {"dataset_name": "easy-VQA"}
    LAYOUT = "answers.txt, and questions.json and images/ under train/ and test/"
    REMEDY = "Correct data_root, or leave it out and `pip install --force-reinstall easy-vqa==1.0`"

    def __init__(
        self,
        *,
        split: str,
        data_root: str | None = None,
        num_val_images: int = 400,
        val_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.split = check_split(split, _FOLDERS)
        self.num_val_images = num_val_images
        self.val_seed = val_seed
        root = Path(data_root) if data_root is not None else _installed_files()
        metainfo = {"classes": self._read_answers(root / "answers.txt"), **(kwargs.pop("metainfo", None) or {})}
        super().__init__(
            ann_file=str(root / _FOLDERS[split] / "questions.json"),
            data_prefix={"img_path": str(root / _FOLDERS[split] / "images")},
            metainfo=metainfo,
            test_mode=kwargs.pop("test_mode", split != "train"),
            **kwargs,
        )

    def load_records(self) -> list[dict]:
        """Reads the questions of the split."""
        rows = sorted(self.parsed(self._read_rows(), self._row), key=lambda row: row["image_id"])
        chosen = self._choose_images(sorted({row["image_id"] for row in rows}))
        return self.group(self.parsed((row for row in rows if row["image_id"] in chosen), self._record))

    def _read_rows(self) -> list:
        path = Path(self.ann_file)
        rows = self.read_json(path, _EXPECTED)
        if not isinstance(rows, list) or not rows:
            raise ValueError(f"{path} holds {str(rows)[:60]!r}: {_EXPECTED}")
        return rows

    def _row(self, index: int, row: Any) -> dict:
        if not (isinstance(row, list) and [type(value) for value in row] == [str, str, int]):
            raise ValueError(f"{self.ann_file}, row {index} is {row!r}: {_EXPECTED}")
        question, answer, image_id = row
        question_id = _FIRST_QUESTION_ID[_FOLDERS[self.split]] + index
        return {"image_id": image_id, "question": question, "answer": answer, "question_id": question_id}

    def _choose_images(self, image_ids: list[int]) -> frozenset[int]:
        if self.split == "test":
            return frozenset(image_ids)
        if not 0 <= self.num_val_images < len(image_ids):
            raise ValueError(
                f"num_val_images={self.num_val_images}: expected 0 to {len(image_ids) - 1}, as {self.ann_file} has "
                f"{len(image_ids)} images"
            )
        order = np.random.RandomState(self.val_seed).permutation(image_ids).tolist()
        held_out, rest = order[: self.num_val_images], order[self.num_val_images :]
        return frozenset(held_out if self.split == "val" else rest)

    def _record(self, _: int, row: dict) -> dict:
        where = f"{self.ann_file}: question {row['question_id']} of image {row['image_id']}"
        return {
            "img_path": str(Path(self.data_prefix["img_path"]) / f"{row['image_id']}.png"),
            "image_id": row["image_id"],
            "questions": [check_text(row["question"], where)],
            "answers": [row["answer"]],
            "gt_answers": [[row["answer"]] * _ANSWERS],
            "answer_types": ["yes/no" if row["answer"] in ("yes", "no") else "other"],
            "targets": [self._target(row["answer"], where)],
            "question_ids": [row["question_id"]],
        }

    def _target(self, answer: str, where: str) -> int:
        classes: Sequence[str] = self._metainfo["classes"]
        if answer not in classes:
            nearest = ", ".join(map(repr, difflib.get_close_matches(answer, classes, n=3, cutoff=0.0)))
            raise ValueError(
                f"{where} has the unknown answer {answer!r}; the nearest known ones are {nearest}. Correct the row, or "
                "add the answer to answers.txt"
            )
        return classes.index(answer)

    @classmethod
    def _read_answers(cls, path: Path) -> tuple[str, ...]:
        answers = tuple(line.strip() for line in cls.read_text(path).splitlines() if line.strip())
        if not answers:
            raise ValueError(f"{path} is empty: expected one answer a line; fetch the file again")
        return answers


def _installed_files() -> Path:
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "data_root=None stands for the files of the package easy-vqa, which is not installed: run `pip install "
            "easy-vqa==1.0`, or set data_root to a folder with answers.txt, train/ and test/"
        )
    return Path(spec.submodule_search_locations[0]) / "data"
