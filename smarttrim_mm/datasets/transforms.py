"""Pipeline steps from a data set's record to a model's item."""

import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from PIL import Image, ImageFile, ImageOps

from smarttrim_mm.datasets.tokenizers import Tokenizer, tokenized_answer
from smarttrim_mm.registry import TOKENIZERS, TRANSFORMS

# AssertionError: mmcv's answer to OpenCV's None; SyntaxError: Pillow's answer to a broken PNG chunk
_UNREADABLE = (OSError, AssertionError, SyntaxError, cv2.error)
_PNG_MODES = ("1", "L", "LA", "P", "RGBA", "I;16")  # of Pillow's pictures, besides RGB


@contextmanager
def _truncated_is_an_error() -> Iterator[None]:
    """Pillow has one switch for all, which LAVIS turns when it is imported."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmcv's `LoadImageFromFile` whose errors name the file; like mmcv's, it gives BGR uint8 [height, width, 3].

    It takes the same arguments.
    """

    def transform(self, results: dict) -> dict:
        """Adds ``img``, ``img_shape`` and ``ori_shape``.

        Args:
            results: A record with ``img_path``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is empty, truncated or no image.
        """
        path = results["img_path"]
        try:
            with _truncated_is_an_error():
                return super().transform(results)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"img_path={path!r}: no such file; check the data set's data_root, or fetch its images again"
            ) from error
        except _UNREADABLE as error:
            raise ValueError(
                f"img_path={path!r} cannot be read ({error}); if the file is truncated or no image, fetch it again"
            ) from error


class LoadPicture(BaseTransform):
    """A step that loads image files, for pictures that are in memory as well: these are read as their lossless file would be.

    Args:
        loader: The step.
    """

    def __init__(self, loader: LoadImageFromFile) -> None:
        self.loader = loader

    def transform(self, results: dict) -> dict:
        """Adds what the loader adds.

        Args:
            results: A record whose ``img_path`` is a file's, or a picture; that gives way to its size and mode, in words.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file or the picture is truncated or no image, or the picture has a mode that is not known.
        """
        picture = results["img_path"]
        if isinstance(picture, str):
            return self.loader(results)
        results["img_path"] = picture_name(picture)
        image = mmcv.imfrombytes(
            _as_file(picture, self.loader.color_type), flag=self.loader.color_type, backend=self.loader.imdecode_backend
        )
        results["img"] = image.astype(np.float32) if self.loader.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


def picture_name(picture: Image.Image) -> str:
    """A name for what has no path: ``'picture of 64 x 48 pixels (RGB)'``, width first."""
    return f"picture of {picture.width} x {picture.height} pixels ({picture.mode})"


def _as_file(picture: Image.Image, color_type: str) -> bytes:
    if picture.mode not in ("RGB", *_PNG_MODES):
        raise ValueError(
            f"{picture_name(picture)}: expected one of the modes RGB, {', '.join(_PNG_MODES)}; give image.convert('RGB')"
        )
    content = io.BytesIO()
    try:
        with _truncated_is_an_error():
            if color_type in ("color", "grayscale"):  # in which loaders turn a file as its camera was held
                picture = ImageOps.exif_transpose(picture)
            picture.save(content, "BMP" if picture.mode == "RGB" else "PNG")  # of the two, a BMP takes less time
    except _UNREADABLE as error:
        raise ValueError(f"{picture_name(picture)} cannot be read ({error}); open its file again") from error
    return content.getvalue()


@TRANSFORMS.register_module()
class TokenizeQuestions(BaseTransform):
    """Turns an image's questions into token ids.

    Args:
        tokenizer: Config of a tokenizer (registry `TOKENIZERS`), or a tokenizer.
        max_length: Most tokens of a question, begin and end tokens included; a longer question loses its last words.
    """

    def __init__(self, *, tokenizer: dict | Tokenizer, max_length: int) -> None:
        self.tokenizer: Tokenizer = TOKENIZERS.build(tokenizer) if isinstance(tokenizer, dict) else tokenizer
        self.max_length = max_length

    def transform(self, results: dict) -> dict:
        """Adds ``input_ids``, a list of int lists.

        Args:
            results: A record with ``questions``.
        """
        results["input_ids"] = [self.tokenizer(text, self.max_length).tolist() for text in results["questions"]]
        return results


@TRANSFORMS.register_module()
class TokenizeAnswers(BaseTransform):
    """Turns the answers of an image's questions into texts for a decoder, each distinct answer of a question once.

    Args:
        tokenizer: Config of a tokenizer (registry `TOKENIZERS`), or a tokenizer.
        max_length: Most tokens of an answer, begin and end tokens included.
    """

    def __init__(self, *, tokenizer: dict | Tokenizer, max_length: int = 16) -> None:
        self.tokenizer: Tokenizer = TOKENIZERS.build(tokenizer) if isinstance(tokenizer, dict) else tokenizer
        self.max_length = max_length

    def transform(self, results: dict) -> dict:
        """Adds ``answer_ids`` (of each question, int lists) and ``answer_weights`` (their shares of the question's answers).

        Args:
            results: A record; without ``gt_answers`` (a list of texts a question) it stays as it is. With
                ``gt_answer_weights`` these are the weights of each question's distinct answers, instead of their shares.
        """
        if "gt_answers" in results:
            counted = [Counter(answers) for answers in results["gt_answers"]]
            results["answer_ids"] = [
                [tokenized_answer(self.tokenizer, text, self.max_length) for text in each] for each in counted
            ]
            shares = [[count / each.total() for count in each.values()] for each in counted]
            results["answer_weights"] = results.get("gt_answer_weights", shares)
        return results


@TRANSFORMS.register_module()
class CleanCaptions(BaseTransform):
    """Brings captions into the form that BLIP (arXiv 2201.12086) trains on.

    They are lower-cased, punctuation marks (but for the comma, the hyphen, the apostrophe, ``?`` ...) become spaces, and these
    are joined.

    Args:
        max_words: Most words of a caption; a longer one loses its last.
    """

    def __init__(self, *, max_words: int = 50) -> None:
        self.max_words = max_words

    def transform(self, results: dict) -> dict:
        """Changes ``gt_answers``.

        Args:
            results: A record with ``gt_answers``, a list of captions a prompt.
        """
        results["gt_answers"] = [[clean_caption(text, self.max_words) for text in each] for each in results["gt_answers"]]
        return results


def clean_caption(text: str, max_words: int) -> str:
    """A caption as BLIP trains on it, see `CleanCaptions`; it may be empty."""
    joined = re.sub(r"\s{2,}", " ", re.sub(r"[.!\"()*#:;~]", " ", text.lower())).strip(" \n")
    return " ".join(joined.split(" ")[:max_words])
