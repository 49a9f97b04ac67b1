"""Pictures with transparent pixels."""

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from smarttrim_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ComposeAlpha(BaseTransform):
    """Lays a picture over one colour, which shows where the picture is transparent.

    It follows ``LoadImage(color_type="unchanged")``. Loaded in colour, a picture loses its opacity, and transparent pixels show
    the colour that the file happens to store for them, mostly black.

    Args:
        background: The colour, 0-255, in the order of the picture's channels: as mmcv loads it, blue, green, red.

    Raises:
        ValueError: If the colour is not three numbers of 0-255.
    """

    def __init__(self, *, background: Sequence[int] = (255, 255, 255)) -> None:
        if len(background) != 3 or not all(0 <= value <= 255 for value in background):
            raise ValueError(f"background={background!r}: expected three numbers of 0-255, one a channel")
        self.background = np.array(background, np.uint16)

    def transform(self, results: dict) -> dict:
        """Changes ``img`` to uint8 [height, width, 3]; without a channel of opacity it stays as it is.

        Args:
            results: A record with ``img``, uint8 [height, width, 3 or 4].

        Raises:
            ValueError: If ``img`` is something else.
        """
        image = results["img"]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
            raise ValueError(
                f"img_path={results.get('img_path')!r}: its pixels are {image.dtype} {list(image.shape)}, expected uint8 "
                "[height, width, 3], or 4 with the opacity; store the picture in colour with 8 bits"
            )
        if image.shape[2] == 4:
            opacity = image[..., 3:].astype(np.uint16)
            mixed = image[..., :3] * opacity + self.background * (255 - opacity)  # at most 255 * 255
            results["img"] = ((mixed + 127) // 255).astype(np.uint8)
        return results
