import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope

import smarttrim_mm  # noqa: F401

ROWS = [
    ["what color is the shape?", "red", 0],
    ["is there a circle?", "yes", 0],
    ["is there a square?", "no", 0],
    ["what color is the shape?", "blue", 1],
    ["is there a circle?", "no", 2],
    ["is there a square?", "no", 2],
]


@pytest.fixture(autouse=True)
def scope() -> Iterator[None]:
    """Configs name classes of this package without a prefix, as under a Runner."""
    with DefaultScope.overwrite_default_scope("smarttrim_mm"):
        yield


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[..., str]:
    """Writes a data set in easy-VQA's layout; returns its root."""

    def make(rows: list = ROWS, answers: tuple[str, ...] = ("red", "blue", "yes", "no")) -> str:
        for split in ("train", "test"):
            images = tmp_path / split / "images"
            images.mkdir(parents=True)
            for image_id in {row[2] for row in rows}:
                cv2.imwrite(str(images / f"{image_id}.png"), np.full((4, 6, 3), (0, 100, 200 + image_id), np.uint8))
            (tmp_path / split / "questions.json").write_text(json.dumps(rows))
        (tmp_path / "answers.txt").write_text("\n".join(answers) + "\n")
        return str(tmp_path)

    return make
