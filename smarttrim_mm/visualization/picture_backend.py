"""A backend that writes pictures under their bare names."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.visualization.vis_backend import BaseVisBackend
from PIL import Image

from smarttrim_mm.registry import VISBACKENDS
from smarttrim_mm.utils.checkpoint_io import write_atomically


@VISBACKENDS.register_module()
class PictureVisBackend(BaseVisBackend):
    """Writes each picture as ``<save_dir>/<name>.png``; a later step's takes its place. Scalars and configs are left to others.
    No file is ever half written.

    Args:
        save_dir: The folder.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir)
        self.written: list[Path] = []

    @property
    def experiment(self) -> "PictureVisBackend":
        return self

    def _init_env(self) -> None:
        Path(self._save_dir).mkdir(parents=True, exist_ok=True)

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Writes a picture.

        Args:
            name: Of the file, without its ending.
            image: RGB uint8 [height, width, 3].
            step: Makes no difference.
            **kwargs: Those of other backends.
        """
        path = Path(self._save_dir) / f"{name}.png"
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG", optimize=True)
        write_atomically(path, content.getvalue())
        self.written.append(path)
