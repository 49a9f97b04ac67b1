"""easy-VQA: 64 px pictures of one coloured shape, with template questions and 13 answers."""

import difflib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from smarttrim_mm.registry import DATASETS

_FOLDERS = {"train": "train", "val": "train", "test": "test"}
_FIRST_QUESTION_ID = {"train": 0, "test": 1_000_000}
_PER_QUESTION = ("questions", "answers", "targets", "question_ids")


@DATASETS.register_module()
class EasyVQA(BaseDataset):
    """easy-VQA (https://github.com/vzhou842/easy-VQA, MIT), one item an image with its questions.

    The official files hold 4,000 training images with 38,575 questions and 1,000 test images with 9,673. ``val`` is a
    fixed random part of the training images, which ``train`` then leaves out; ``test`` is the official test split.

    A record has ``img_path``, ``image_id``, ``questions``, ``answers``, ``targets`` (indices into
    ``metainfo['classes']``) and ``question_ids``: the question's row in its official file, plus 1,000,000 in the test
    file.

    Args:
        split: 'train', 'val' or 'test'.
        data_root: Folder with ``answers.txt`` and, under ``train`` and ``test``, ``questions.json`` and
            ``images/ID.png``; None: the files of the installed package ``easy-vqa``.
        questions_per_image: Random questions of an image to take each time it is drawn (all, if it has fewer), from
            numpy's global generator; None: all, in the file's order.
        group_questions: False gives an item of its own to each image-question pair.
        num_images: Use the first so many images of the split only; None: all.
        num_val_images: Images that ``val`` takes from the training images; 0: ``train`` keeps all.
        val_seed: Seed of that choice.
        **kwargs: Further arguments of mmengine's `BaseDataset`, e.g. ``pipeline``.

    Raises:
        FileNotFoundError: If a file or an image is missing.
        ValueError: If an argument or a file's content is not as described, if a question is empty or an answer unknown.
    """

    METAINFO = {"dataset_name": "easy-VQA"}

    def __init__(
        self,
        *,
        split: str,
        data_root: str | None = None,
        questions_per_image: int | None = None,
        group_questions: bool = True,
        num_images: int | None = None,
        num_val_images: int = 400,
        val_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if split not in _FOLDERS:
            raise ValueError(f"split={split!r}: expected one of {', '.join(map(repr, _FOLDERS))}")
        for name, value in (("questions_per_image", questions_per_image), ("num_images", num_images)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1, or None for all")
        self.split = split
        self.questions_per_image = questions_per_image
        self.group_questions = group_questions
        self.num_images = num_images
        self.num_val_images = num_val_images
        self.val_seed = val_seed
        root = Path(data_root) if data_root is not None else _installed_files()
        metainfo = {"classes": _read_answers(root / "answers.txt"), **(kwargs.pop("metainfo", None) or {})}
        super().__init__(
            ann_file=str(root / _FOLDERS[split] / "questions.json"),
            data_prefix={"img_path": str(root / _FOLDERS[split] / "images")},
            metainfo=metainfo,
            test_mode=kwargs.pop("test_mode", split != "train"),
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Reads the questions of the split and checks them and their images."""
        rows = _read_rows(Path(self.ann_file))
        chosen = self._choose_images(sorted({image_id for _, _, image_id in rows}))
        images = Path(self.data_prefix["img_path"])
        _check_images(images, chosen)
        records: dict[int, dict[str, Any]] = {
            image_id: {
                "img_path": str(images / f"{image_id}.png"),
                "image_id": image_id,
                **{key: [] for key in _PER_QUESTION},
            }
            for image_id in chosen
        }
        first_id = _FIRST_QUESTION_ID[_FOLDERS[self.split]]
        for question_id, (question, answer, image_id) in enumerate(rows, start=first_id):
            if image_id not in records:
                continue
            values = (question, answer, self._target(question, answer, image_id, question_id), question_id)
            for key, value in zip(_PER_QUESTION, values, strict=True):
                records[image_id][key].append(value)
        if self.group_questions:
            return list(records.values())
        return [_take(record, [i]) for record in records.values() for i in range(len(record["questions"]))]

    def prepare_data(self, idx: int) -> dict:
        """Draws the questions of a record and sends it through the pipeline.

        Raises:
            ValueError: If a step of the pipeline gave None (mmengine would silently train on another image).
        """
        record = self.get_data_info(idx)
        if self.questions_per_image is not None and self.questions_per_image < len(record["questions"]):
            picks = np.random.permutation(len(record["questions"]))[: self.questions_per_image]
            record = _take(record, picks.tolist())
        item = self.pipeline(record)
        if item is None:
            raise ValueError(f"img_path={record['img_path']!r}: a step of the pipeline returned None, expected a record")
        return item

    def _choose_images(self, image_ids: list[int]) -> list[int]:
        if self.split != "test":
            if not 0 <= self.num_val_images < len(image_ids):
                raise ValueError(
                    f"num_val_images={self.num_val_images}: expected 0 to {len(image_ids) - 1}, as {self.ann_file} has "
                    f"{len(image_ids)} images"
                )
            order = np.random.RandomState(self.val_seed).permutation(image_ids).tolist()
            held_out, rest = order[: self.num_val_images], order[self.num_val_images :]
            image_ids = sorted(held_out if self.split == "val" else rest)
        if self.num_images is not None and self.num_images > len(image_ids):
            raise ValueError(
                f"num_images={self.num_images}: the split {self.split!r} has {len(image_ids)} images; ask for fewer"
            )
        return image_ids[: self.num_images]

    def _target(self, question: str, answer: str, image_id: int, question_id: int) -> int:
        where = f"{self.ann_file}: question {question_id} of image {image_id}"
        if not question.strip():
            raise ValueError(f"{where} is empty ({question!r}): write the question or remove its row")
        classes: Sequence[str] = self._metainfo["classes"]
        if answer not in classes:
            nearest = ", ".join(map(repr, difflib.get_close_matches(answer, classes, n=3, cutoff=0.0)))
            raise ValueError(
                f"{where} has the unknown answer {answer!r}; the nearest known ones are {nearest}. Correct the row, or "
                "add the answer to answers.txt"
            )
        return classes.index(answer)


def _take(record: dict, picks: Sequence[int]) -> dict:
    """A record with some of its questions."""
    return {**record, **{key: [record[key][i] for i in picks] for key in _PER_QUESTION}}


def _installed_files() -> Path:
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "data_root=None stands for the files of the package easy-vqa, which is not installed: run `pip install "
            "easy-vqa==1.0`, or set data_root to a folder with answers.txt, train/ and test/"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"easy-VQA: no file {path}; expected answers.txt, and questions.json and images/ under train/ and test/. "
            "Correct data_root, or leave it out and `pip install --force-reinstall easy-vqa==1.0`"
        ) from error


def _read_answers(path: Path) -> tuple[str, ...]:
    answers = tuple(line.strip() for line in _read(path).splitlines() if line.strip())
    if not answers:
        raise ValueError(f"{path} is empty: expected one answer a line; fetch the file again")
    return answers


def _read_rows(path: Path) -> list[tuple[str, str, int]]:
    """Rows (question, answer, image id) of a questions.json."""
    expected = "expected a list of [question, answer, image id]; fetch the file again"
    try:
        rows = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): {expected}") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} holds {str(rows)[:60]!r}: {expected}")
    for index, row in enumerate(rows):
        if not (isinstance(row, list) and [type(value) for value in row] == [str, str, int]):
            raise ValueError(f"{path}, row {index} is {row!r}: {expected}")
    return [(question, answer, image_id) for question, answer, image_id in rows]


def _check_images(folder: Path, image_ids: Sequence[int]) -> None:
    """Raises if an image is missing: now, not in the middle of a training."""
    present = {path.name for path in folder.glob("*.png")}
    missing = [f"{image_id}.png" for image_id in image_ids if f"{image_id}.png" not in present]
    if missing:
        raise FileNotFoundError(
            f"easy-VQA: {len(missing)} of {len(image_ids)} images are missing, the first is {folder / missing[0]}. "
            "Correct data_root, or restore the files with `pip install --force-reinstall easy-vqa==1.0`"
        )
