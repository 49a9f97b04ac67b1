"""What data sets of images with questions share: reading files with clear errors, grouping by image, checking images."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from mmengine.dataset import BaseDataset

Row = TypeVar("Row")

# fields of a record that are lists with one entry a question
_PER_QUESTION = (
    "questions",
    "question_ids",
    "answers",
    "targets",
    "gt_answers",
    "answer_types",
    "answer_scores",
    "identifiers",
    "facts",
)


class VisionLanguageDataset(BaseDataset):
    """Base of data sets whose items are an image (or several) with questions or captions.

    A subclass implements ``load_records``: it reads rows with ``read_text``, ``read_json`` or ``read_list``, turns them into
    records of one question with ``parsed``, and joins those with ``group``.

    Args:
        questions_per_image: Random questions of an image to take each time it is drawn (all, if it has fewer), from
            numpy's global generator; None: all, in the file's order.
        group_questions: False gives an item of its own to each image-question pair.
        num_images: Use the first so many images of the split only; None: all.
        image_size: Height and width in pixels for the pipeline's `ResizeAndCrop`, as the record's ``image_size``; None: the
            pipeline decides.
        **kwargs: Further arguments of mmengine's `BaseDataset`, e.g. ``pipeline``.

    Attributes:
        problems: None: the first broken row or missing image raises. A list: their messages are added to it, and broken
            rows are left out. Set before the data are loaded (``lazy_init=True``).
        file_counts: ``images`` and ``questions`` of the split's files, before any choice.

    Raises:
        FileNotFoundError: If a file or an image is missing.
        ValueError: If an argument or a file's content is not as described.
    """

    split: str
    LAYOUT = ""  # the files that data_root holds, in words
    REMEDY = "Correct data_root; docs/data.md tells where each file comes from"

    def __init__(
        self,
        *,
        questions_per_image: int | None = None,
        group_questions: bool = True,
        num_images: int | None = None,
        image_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        sizes = {"questions_per_image": questions_per_image, "num_images": num_images, "image_size": image_size}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1, or None")
        self.questions_per_image = questions_per_image
        self.group_questions = group_questions
        self.num_images = num_images
        self.image_size = image_size
        self.problems: list[str] | None = None
        self.file_counts: dict[str, int] = {}
        super().__init__(**kwargs)

    def load_records(self) -> list[dict]:
        """Records of the chosen images with all their questions."""
        raise NotImplementedError

    def published_counts(self) -> dict[str, int]:
        """``images`` and ``questions`` that the official files are known to hold, where they are known."""
        return {}

    def load_data_list(self) -> list[dict]:
        """Reads the split and checks it and its images."""
        records = self.load_records()
        self._check_images(records)
        if self.group_questions:
            return records
        return [take_questions(record, [i]) for record in records for i in range(len(record["questions"]))]

    def prepare_data(self, idx: int) -> dict:
        """Draws the questions of a record and sends it through the pipeline.

        Raises:
            ValueError: If a step of the pipeline gave None (mmengine would silently train on another image).
        """
        record = self.get_data_info(idx)
        if self.questions_per_image is not None and self.questions_per_image < len(record["questions"]):
            picks = np.random.permutation(len(record["questions"]))[: self.questions_per_image]
            record = take_questions(record, picks.tolist())
        record = self.complete(record, idx)
        if self.image_size is not None:
            record["image_size"] = self.image_size
        item = self.pipeline(record)
        if item is None:
            key = "img_path" if "img_path" in record else "img_paths"
            raise ValueError(f"{key}={record[key]!r}: a step of the pipeline returned None, expected a record")
        return item

    def complete(self, record: dict, idx: int) -> dict:
        """What a record gets each time it is drawn.

        Args:
            record: The record, with its questions drawn.
            idx: Its place in the data set.
        """
        return record

    def group(self, rows: Iterable[dict]) -> list[dict]:
        """Joins the questions of each image.

        Args:
            rows: Records with ``image_id`` and one question or more.

        Returns:
            A record of each of the first ``num_images`` images, in the order of their first rows.
        """
        records: dict[int, dict] = {}
        count = 0
        for row in rows:
            count += len(row["questions"])
            record = records.setdefault(row["image_id"], row)
            if record is not row:
                for key in _PER_QUESTION:
                    if key in row:
                        record[key].extend(row[key])
        self.file_counts = {"images": len(records), "questions": count}
        if not records:
            raise ValueError(f"{self.METAINFO['dataset_name']}: the split {self.split!r} has no rows. {self.REMEDY}")
        if self.num_images is not None and self.num_images > len(records):
            raise ValueError(f"num_images={self.num_images}: the split {self.split!r} has {len(records)} images; ask for fewer")
        return list(records.values())[: self.num_images]

    def parsed(self, rows: Iterable[Row], parse: Callable[[int, Row], dict | None]) -> Iterator[dict]:
        """Parses rows; a ValueError is raised, or kept in ``problems``.

        Args:
            rows: The rows of a file.
            parse: Makes a record of a row's number, from 0, and the row; None: the row belongs to another split.
        """
        for index, row in enumerate(rows):
            try:
                record = parse(index, row)
            except ValueError as error:
                if self.problems is None:
                    raise
                self.problems.append(str(error))
            else:
                if record is not None:
                    yield record

    @classmethod
    def read_text(cls, path: Path) -> str:
        """The content of a file of the data set."""
        try:
            return path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(
                f"{cls.METAINFO['dataset_name']}: no file {path}; expected {cls.LAYOUT}. {cls.REMEDY}"
            ) from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text ({error}): expected {cls.LAYOUT}. {cls.REMEDY}") from error

    @classmethod
    def read_json(cls, path: Path, expected: str) -> Any:
        """The content of a JSON file.

        Args:
            path: The file.
            expected: What it should hold, in words.
        """
        try:
            return json.loads(cls.read_text(path))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON ({error}): {expected}") from error

    @classmethod
    def read_list(cls, path: Path, key: str) -> list:
        """The rows of a JSON file that holds them in a list under ``key``."""
        expected = f"expected an object with a list {key!r}, as in the official file; fetch the file again"
        content = cls.read_json(path, expected)
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            held = f"an object with {', '.join(map(repr, content))}" if isinstance(content, dict) else repr(str(content)[:60])
            raise ValueError(f"{path} holds {held}: {expected}")
        return rows

    @classmethod
    def read_lines(cls, path: Path) -> list[str]:
        """The lines of a file with a JSON object on each (sentences may hold other separators than a newline)."""
        lines = cls.read_text(path).split("\n")
        while lines and not lines[-1].strip():
            lines.pop()
        if not lines:
            raise ValueError(f"{path} is empty: expected an object a line, as in the official file; fetch the file again")
        return lines

    def _check_images(self, records: Sequence[dict]) -> None:
        """Reports images that are missing: now, not in the middle of a training."""
        paths = list(dict.fromkeys(path for record in records for path in image_paths(record)))
        present: dict[str, frozenset[str]] = {}
        missing = []
        for path in paths:
            folder, name = os.path.split(path)
            if folder not in present:
                present[folder] = frozenset(os.listdir(folder) if Path(folder).is_dir() else ())  # noqa: PTH208 (names, 82,783 of them)
            if name not in present[folder]:
                missing.append(path)
        if missing and self.problems is None:
            raise FileNotFoundError(
                f"{self.METAINFO['dataset_name']}: {len(missing)} of {len(paths)} images are missing, the first is "
                f"{missing[0]}. {self.REMEDY}"
            )
        if self.problems is not None:
            self.problems += [f"{path}: no such image" for path in missing]


def image_paths(record: dict) -> list[str]:
    """The image files of a record."""
    return record["img_paths"] if "img_paths" in record else [record["img_path"]]


def take_questions(record: dict, picks: Sequence[int]) -> dict:
    """A record with some of its questions."""
    return {**record, **{key: [record[key][i] for i in picks] for key in _PER_QUESTION if key in record}}


def check_split(split: str, known: Iterable[str]) -> str:
    """Returns a split, or raises a ValueError that names the known ones."""
    if split not in known:
        raise ValueError(f"split={split!r}: expected one of {', '.join(map(repr, known))}")
    return split


def parse_object(line: str, where: str) -> Any:
    """The JSON value of a line; ``where`` is the file and line, for the error."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is no JSON ({error}), but {line[:60]!r}: expected an object; fetch the file again"
        ) from error


def field(row: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of a row.

    Args:
        row: The row, an object of a JSON file.
        key: Its field.
        kind: The type that is expected, or several.
        where: File and row, for the error.

    Raises:
        ValueError: If the row has no such field, or one of another type.
    """
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(one.__name__ for one in kinds)
        raise ValueError(
            f"{where} has {key}={value!r} in {str(row)[:120]!r}: expected {key!r} of type {wanted}; is this the official file "
            "of this data set? Fetch it again, or remove the row"
        )
    return value


def check_text(text: str, where: str) -> str:
    """Returns a text, or raises a ValueError if it is empty."""
    if not text.strip():
        raise ValueError(f"{where} is empty ({text!r}): write its text or remove its row")
    return text
