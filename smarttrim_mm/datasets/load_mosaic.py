"""The pipeline step that makes one picture of the pictures of its cells."""

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np

from smarttrim_mm.datasets.transforms import LoadImage
from smarttrim_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadMosaic(LoadImage):
    """Loads the pictures of a mosaic and lays each into its cell; a mosaic that is one file already, it loads as `LoadImage`.

    Args:
        empty: Colour of the cells without a picture: blue, green and red, 0-255. White is near the pale backgrounds of easy-VQA
            (230 to 255), so that an empty cell looks like a picture without a shape.
        **kwargs: Arguments of `LoadImage`.

    Raises:
        ValueError: If ``empty`` is no such colour.
    """

    def __init__(self, *, empty: Sequence[int] = (255, 255, 255), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if len(empty) != 3 or not all(0 <= value <= 255 for value in empty):
            raise ValueError(f"empty={empty!r}: expected three numbers 0-255, of blue, green and red")
        self.empty = tuple(empty)

    def transform(self, results: dict) -> dict:
        """Adds ``img``, BGR uint8 [height, width, 3], ``img_shape`` and ``ori_shape``.

        Args:
            results: A record with ``img_paths`` and ``mosaic``: its ``grid``, ``cell_size`` in pixels, and ``cells``, row and
                column of each picture, from 0; a picture of another size is resized. Or a record with ``img_path``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a file is empty, truncated or no image.
        """
        if "mosaic" not in results:
            return super().transform(results)
        grid, size, cells = (results["mosaic"][key] for key in ("grid", "cell_size", "cells"))
        image = np.full((grid * size, grid * size, 3), self.empty, np.uint8)
        for path, (row, column) in zip(results["img_paths"], cells, strict=True):
            picture = super().transform({"img_path": path})["img"]
            if picture.shape[:2] != (size, size):
                picture = mmcv.imresize(picture, (size, size), interpolation="bicubic", backend="pillow")
            image[row * size : (row + 1) * size, column * size : (column + 1) * size] = picture
        results["img"] = image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results
