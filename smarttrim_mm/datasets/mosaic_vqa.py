"""Mosaics of easy-VQA's pictures, whose questions say which cell they are about: what matters depends on the question."""

from itertools import zip_longest
from typing import Any

import numpy as np

from smarttrim_mm.datasets.easy_vqa import EasyVQA
from smarttrim_mm.datasets.vision_language import VisionLanguageDataset, check_split, take_questions
from smarttrim_mm.registry import DATASETS

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_SPLITS = ("train", "val", "test")  # a split's place is part of what its mosaics are drawn from, and of their ids
_MOST_MOSAICS = 10_000_000  # of a split, so that no two splits share an id
_MOST_QUESTIONS = 100  # of a mosaic, likewise


@DATASETS.register_module()
class MosaicVQA(VisionLanguageDataset):
    """Pictures of ``grid`` x ``grid`` cells with easy-VQA's pictures in some, one item a mosaic with its questions.

    A question is one that easy-VQA asks about the picture in a cell, after the cell's place: 'second row, third column: what
    color is the shape?'. Its answer is easy-VQA's. So about 1 / grid² of a mosaic is needed, and only who reads the question
    can tell which part; the number of filled cells says how much else there is. This is a data set of ours, no published one.

    Mosaic i of a split is the same on every machine and whatever ``num_mosaics`` is: it is drawn from ``seed``, the split and i
    alone. Of its cells a number from ``min_filled`` to ``max_filled`` is filled, each number as often as the others, with
    different pictures; then so many different questions are drawn from all that easy-VQA asks about these. Pictures are those
    of the same split of `EasyVQA`, so that training, choosing and testing share none.

    A record has `EasyVQA`'s fields but for ``img_path``, and

    - ``img_paths``: the files of the filled cells, and ``mosaic``, what `LoadMosaic` makes one picture of them by;
    - ``facts``: of each question its ``filled_cells`` (of the mosaic), ``asked_cell`` (row and column, from 1) and
      ``source_question_id`` (of `EasyVQA`), which ``tools/test.py --out`` writes beside the answer.

    Ids: mosaic i of the train, val or test split is image 0, 10,000,000 or 20,000,000 + i, and its question j is a hundred
    times that + j.

    Args:
        split: 'train', 'val' or 'test'.
        num_mosaics: Mosaics of the split.
        grid: Cells of a row and of a column, 2 to 8.
        cell_size: Height and width of a cell in pixels; easy-VQA's pictures have 64.
        questions_per_mosaic: Questions of a mosaic; all, where easy-VQA asks fewer about its pictures.
        min_filled: Fewest cells that are filled.
        max_filled: Most cells that are filled; None: all.
        even_types: Yes/no questions and others take turns; False: as often as easy-VQA asks them, three to one.
        seed: Changes every mosaic.
        data_root: See `EasyVQA`.
        num_val_images: See `EasyVQA`.
        val_seed: See `EasyVQA`.
        **kwargs: Further arguments of `VisionLanguageDataset` and of mmengine's `BaseDataset`, e.g. ``pipeline``.

    Raises:
        FileNotFoundError: If a file or an image of easy-VQA is missing.
        ValueError: If an argument or the content of one of easy-VQA's files is not as described, or if the split has fewer
            pictures than a mosaic can take.
    """

    METAINFO = {"dataset_name": "MosaicVQA"}
    LAYOUT = EasyVQA.LAYOUT
    REMEDY = EasyVQA.REMEDY

    def __init__(
        self,
        *,
        split: str,
        num_mosaics: int,
        grid: int = 3,
        cell_size: int = 64,
        questions_per_mosaic: int = 4,
        min_filled: int = 1,
        max_filled: int | None = None,
        even_types: bool = True,
        seed: int = 0,
        data_root: str | None = None,
        num_val_images: int = 400,
        val_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.split = check_split(split, _SPLITS)
        self.num_mosaics = _within("num_mosaics", num_mosaics, 1, _MOST_MOSAICS)
        self.grid = _within("grid", grid, 2, len(ORDINALS))
        self.cell_size = _within("cell_size", cell_size, 1)
        self.questions_per_mosaic = _within("questions_per_mosaic", questions_per_mosaic, 1, _MOST_QUESTIONS)
        self.max_filled = _within("max_filled", grid**2 if max_filled is None else max_filled, 1, grid**2)
        self.min_filled = _within("min_filled", min_filled, 1, self.max_filled)
        self.even_types = even_types
        self.seed = _within("seed", seed, 0)
        self.source = EasyVQA(
            split=split, data_root=data_root, num_val_images=num_val_images, val_seed=val_seed, lazy_init=True
        )
        super().__init__(
            ann_file=self.source.ann_file,
            metainfo={"classes": self.source.metainfo["classes"], **(kwargs.pop("metainfo", None) or {})},
            test_mode=kwargs.pop("test_mode", split != "train"),
            **kwargs,
        )

    def load_records(self) -> list[dict]:
        """Draws the mosaics from the pictures and questions of easy-VQA's split."""
        self.source.problems = self.problems
        pictures = self.source.load_records()
        if len(pictures) < self.max_filled:
            raise ValueError(
                f"max_filled={self.max_filled}: the split {self.split!r} of easy-VQA has {len(pictures)} pictures, and a "
                "mosaic shows none twice; ask for fewer cells, or change num_val_images"
            )
        return self.group(self._mosaic(number, pictures) for number in range(self.num_mosaics))

    def _mosaic(self, number: int, pictures: list[dict]) -> dict:
        random = generator(self.seed, self.split, number)
        filled = int(random.randint(self.min_filled, self.max_filled + 1, dtype=np.int64))
        cells = sorted(random.permutation(self.grid**2)[:filled].tolist())
        chosen = [pictures[i] for i in random.permutation(len(pictures))[:filled].tolist()]
        asked = self._ask(chosen, random)
        places = [divmod(cell, self.grid) for cell in cells]
        image_id = _SPLITS.index(self.split) * _MOST_MOSAICS + number
        record: dict[str, Any] = {
            "img_paths": [picture["img_path"] for picture in chosen],
            "mosaic": {"grid": self.grid, "cell_size": self.cell_size, "cells": places},
            "image_id": image_id,
            "question_ids": [image_id * _MOST_QUESTIONS + i for i in range(len(asked))],
            "facts": [],
        }
        for i, j in asked:
            one = take_questions(chosen[i], [j])
            row, column = places[i]
            one["questions"] = [f"{ORDINALS[row]} row, {ORDINALS[column]} column: {one['questions'][0]}"]
            for key in ("questions", "answers", "gt_answers", "answer_types", "targets"):
                record.setdefault(key, []).extend(one[key])
            record["facts"].append(
                {
                    "filled_cells": filled,
                    "asked_cell": [row + 1, column + 1],
                    "source_question_id": one["question_ids"][0],
                }
            )
        return record

    def _ask(self, chosen: list[dict], random: np.random.RandomState) -> list[tuple[int, int]]:
        """Which questions are asked: numbers of the picture and of its question."""
        pool = [(i, j) for i, picture in enumerate(chosen) for j in range(len(picture["questions"]))]
        order = [pool[i] for i in random.permutation(len(pool)).tolist()]
        if self.even_types:
            of_type: dict[str, list[tuple[int, int]]] = {}
            for i, j in order:
                of_type.setdefault(chosen[i]["answer_types"][j], []).append((i, j))
            order = [one for turn in zip_longest(*of_type.values()) for one in turn if one is not None]
        return order[: self.questions_per_mosaic]


def generator(seed: int, split: str, number: int) -> np.random.RandomState:
    """What a mosaic is drawn from: numpy's legacy generator, whose numbers are the same in all its versions.

    Args:
        seed: The data set's.
        split: 'train', 'val' or 'test'.
        number: The mosaic's place in the split.
    """
    entropy = np.random.SeedSequence((seed, _SPLITS.index(split), number))
    return np.random.RandomState(np.random.MT19937(entropy))


def _within(name: str, value: int, least: int, most: int | None = None) -> int:
    """Returns a whole number, or raises a ValueError that says what was expected."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}={value!r}: expected a whole number, {wanted}")
    return value
