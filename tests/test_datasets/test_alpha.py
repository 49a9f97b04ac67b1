import cv2
import numpy as np
import pytest

from smarttrim_mm.datasets.alpha import ComposeAlpha
from smarttrim_mm.datasets.transforms import LoadImage

# blue, green, red, opacity: transparent black, half a red, opaque
PIXELS = np.array([[[0, 0, 0, 0], [10, 0, 200, 128], [1, 2, 3, 255]]], np.uint8)


@pytest.mark.parametrize("backend", ["pillow", "cv2"])
def test_transparent_pixels_show_the_background(tmp_path, backend):
    path = str(tmp_path / "a.png")
    assert cv2.imwrite(path, PIXELS)
    load = LoadImage(color_type="unchanged", imdecode_backend=backend)
    # by hand: 10 * 128 / 255 + 255 * 127 / 255 = 132.02, 127, 200 * 128 / 255 + 127 = 227.39
    assert ComposeAlpha()(load({"img_path": path}))["img"].tolist() == [[[255] * 3, [132, 127, 227], [1, 2, 3]]]
    blue = ComposeAlpha(background=(255, 0, 0))(load({"img_path": path}))["img"]
    assert blue.tolist() == [[[255, 0, 0], [132, 0, 100], [1, 2, 3]]] and blue.dtype == np.uint8
    assert LoadImage(imdecode_backend=backend)({"img_path": path})["img"][0, 0].tolist() == [0, 0, 0]  # what it is for


def test_opaque_pictures_stay_as_they_are():
    assert ComposeAlpha()({"img": PIXELS[..., :3]})["img"].tolist() == PIXELS[..., :3].tolist()


def test_other_pictures_are_refused():
    with pytest.raises(ValueError, match=r"img_path='a.png': its pixels are uint16 \[1, 3, 4\], expected uint8 .* 8 bits"):
        ComposeAlpha()({"img": PIXELS.astype(np.uint16), "img_path": "a.png"})
    with pytest.raises(ValueError, match=r"uint8 \[1, 3\], expected"):
        ComposeAlpha()({"img": PIXELS[..., 0]})


@pytest.mark.parametrize("background", [(255, 255), (0, 0, 256)])
def test_background_is_a_colour(background):
    with pytest.raises(ValueError, match=rf"background=\({background[0]}, .*: expected three numbers of 0-255"):
        ComposeAlpha(background=background)
