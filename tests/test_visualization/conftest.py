import numpy as np
import pytest
from PIL import Image

from smarttrim_mm.visualization.traces import PairTrace


@pytest.fixture
def trace() -> PairTrace:
    """A 32 px image of 4 x 4 patches, a question of four words."""
    kept = np.zeros((4, 4), bool)
    kept[1:3, 1:3] = True
    return PairTrace(
        pixels=np.full((32, 32, 3), (200, 30, 30), np.uint8),
        words=("is", "it", "red", "?"),
        patches={"image.0": np.ones((4, 4), bool), "image.1": kept, "fusion.0": np.zeros((4, 4), bool)},
        kept_words={
            "text.0": np.array([True, True, True, True]),
            "text.1": np.array([True, True, True, True]),
            "fusion.0": np.array([True, False, True, False]),
        },
        predicted="yes",
        answer="no",
        multiply_adds=5e6,
        dense_multiply_adds=11e6,
    )


@pytest.fixture
def pixels():
    def read(path) -> np.ndarray:
        return np.asarray(Image.open(path).convert("RGB"))

    return read
