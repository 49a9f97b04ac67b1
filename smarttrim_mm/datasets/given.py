"""Pictures and texts that a caller gives, in place of a data set's files."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import Compose
from mmpretrain.structures import DataSample
from PIL import Image
from torch.utils.data import Dataset

from smarttrim_mm.datasets.transforms import LoadPicture, TokenizeQuestions, picture_name

Picture = str | PathLike | np.ndarray | Image.Image
Texts = str | Sequence[str | Sequence[str]]
ORDERS = ("rgb", "bgr")


@dataclass(frozen=True)
class GivenItem:
    """A picture, or several that a text is about, and what is asked of it.

    Attributes:
        pictures: Paths, or pictures in memory.
        texts: What is asked; empty where the model reads no text of the caller.
    """

    pictures: tuple[str | Image.Image, ...]
    texts: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The pictures' paths, or what they are, in words."""
        return tuple(one if isinstance(one, str) else picture_name(one) for one in self.pictures)


def given_items(
    images: Picture | Sequence[Picture] | Sequence[Sequence[Picture]],
    texts: Texts | None,
    *,
    each: int = 1,
    reads_text: bool = True,
    channel_order: str = "rgb",
) -> list[GivenItem]:
    """Says which texts are asked of which images.

    Args:
        images: One image or several; for a model that answers about ``each`` of them, groups of so many.
        texts: A text for all images; or of a single image, its texts; or of each image, its text or texts.
        each: Images that a text is about.
        reads_text: Whether the model reads texts.
        channel_order: Of arrays: ``'rgb'`` or ``'bgr'``.

    Raises:
        TypeError: If an image or a text is none.
        ValueError: If there are no images, images and texts do not fit together or the model, a text is empty, an image is a
            URL, an array is no picture, or the channel order is unknown.
        FileNotFoundError: If an image is missing.
    """
    if channel_order not in ORDERS:
        raise ValueError(f"channel_order is {channel_order!r}; expected 'rgb' or 'bgr', the order of the arrays' channels")
    given: list[Any] = [images] if _is_picture(images) else list(_sequence(images, "images"))
    if not given:
        raise ValueError("images is empty; expected an image, or a list of them")
    single = _is_picture(images) or (each > 1 and all(map(_is_picture, given)))
    groups = [images] if single else given
    items = []
    for i, (group, asked) in enumerate(zip(groups, _asked(texts, len(groups), single, reads_text), strict=True)):
        where = "images" if single else f"images[{i}]"
        items.append(GivenItem(_pictures(group, where, each, channel_order), asked))
    return items


def given_pipeline(steps: Sequence[Any]) -> Compose:
    """A test pipeline for pictures and texts that are given: what loads files takes pictures in memory as well.

    Steps ahead of the one that loads make a record of a data set's row; they are left out, but for those that read texts.

    Args:
        steps: The test pipeline's steps, built.

    Raises:
        ValueError: If no step loads images.
    """
    names = ", ".join(type(step).__name__ for step in steps)
    made, found = [], False
    for step in steps:
        step, loads = _take_pictures(step)
        found = found or loads
        if found or isinstance(step, TokenizeQuestions):
            made.append(step)
    if not found:
        raise ValueError(
            f"the test pipeline has the steps {names}: expected one that loads images, such as LoadImage; correct "
            "test_dataloader.dataset.pipeline"
        )
    return Compose(made)


class GivenData(Dataset):
    """Items as a data set, which a model's test pipeline prepares; what it computes of them is what a test computes.

    Identities, by which the policy ``Random`` draws, follow from the content: an input has the same one in any batch.

    Args:
        items: The items.
        pipeline: What :func:`given_pipeline` made of the test pipeline.
        classes: Names of the model's answers; None: not known.
        prompt: What a model that writes continues, in place of a text; None: it reads the items' texts.
        image_size: As a data set's: pixels for the pipeline; None: the pipeline decides.

    Attributes:
        metainfo: ``classes``, where known.
    """

    def __init__(
        self,
        items: Sequence[GivenItem],
        *,
        pipeline: Compose,
        classes: Sequence[str] | None = None,
        prompt: str | None = None,
        image_size: int | None = None,
    ) -> None:
        self.items = items
        self.pipeline = pipeline
        self.metainfo = {} if classes is None else {"classes": classes}
        self.prompt, self.image_size = prompt, image_size

    def __len__(self) -> int:
        return len(self.items)

    def __deepcopy__(self, memo: dict) -> GivenData:
        return self  # mmengine copies what loaders are made of: pictures and tokenizer once more, for each call

    def __getitem__(self, index: int) -> dict:
        """The item as the pipeline packs it.

        Raises:
            ValueError: If an image cannot be read.
        """
        item = self.items[index]
        record: dict[str, Any] = {"image_id": 0}
        if len(item.pictures) > 1:
            record["img_paths"] = list(item.pictures)
        else:
            record["img_path"] = item.pictures[0]
        texts = item.texts if self.prompt is None else (self.prompt,)
        if texts:
            record |= {"questions": list(texts), "question_ids": [0] * len(texts)}
        if self.image_size is not None:
            record["image_size"] = self.image_size
        packed = self.pipeline(record)
        pixels, sample = packed["inputs"], packed["data_samples"]
        _identify(pixels, sample)
        if "img_paths" in sample:
            sample.set_field(list(item.names), "img_paths")
        return packed


def _identify(pixels: torch.Tensor, sample: DataSample) -> None:
    image = zlib.crc32(pixels.contiguous().numpy().tobytes())
    for name in ("image_id", "sample_idx"):  # ours, and mmpretrain's
        sample.set_field(image, name)
    if "questions" in sample:
        ids = [zlib.crc32(text.encode(), image) for text in sample.questions]
        sample.set_field(torch.tensor(ids), "question_ids")


def _take_pictures(step: Any) -> tuple[Any, bool]:
    """The step, or what takes its place; and whether it, or a step inside it, loads images."""
    if isinstance(step, LoadImageFromFile):
        return LoadPicture(step), True
    loads = False
    for inner in vars(step).values():
        if hasattr(inner, "transforms"):
            replaced = [_take_pictures(one) for one in inner.transforms]
            inner.transforms = [one for one, _ in replaced]
            loads = loads or any(loading for _, loading in replaced)
    return step, loads


def _asked(texts: Texts | None, images: int, single: bool, reads_text: bool) -> Iterator[tuple[str, ...]]:
    """The texts of each image."""
    if not reads_text:
        if texts is not None:
            raise ValueError(f"texts is {str(texts)[:60]!r}, but this model answers about images alone; leave texts out")
        return iter([()] * images)
    if texts is None:
        raise ValueError("texts is None, but this model reads a text with each image; give one, such as a question")
    if isinstance(texts, str):
        return iter([(_checked(texts, "texts"),)] * images)
    given: list[Any] = list(_sequence(texts, "texts"))
    if single and any(isinstance(one, str) for one in given):
        given = [given]
    if len(given) != images:
        raise ValueError(
            f"texts has {len(given)} entries for {images} images; expected a text or a list of texts for each image, or one "
            "text for all of them"
        )
    every = []
    for i, own in enumerate(given):
        own = [own] if isinstance(own, str) else list(_sequence(own, f"texts[{i}]"))
        if not own:
            raise ValueError(f"texts[{i}] is empty; expected at least one text for each image")
        every.append(tuple(_checked(text, f"texts[{i}]") for text in own))
    return iter(every)


def _checked(text: object, where: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{where} has a {type(text).__name__}; expected a text")
    if not text.strip():
        raise ValueError(f"{where} has an empty text ({text!r}); write it, or leave its image out")
    return text


def _pictures(group: Any, where: str, each: int, channel_order: str) -> tuple[str | Image.Image, ...]:
    if each == 1:
        return (_picture(group, where, channel_order),)
    if _is_picture(group) or len(_sequence(group, where)) != each:
        got = "one image" if _is_picture(group) else f"{len(group)} images"
        raise ValueError(f"{where} is {got}, but this model's texts are about {each} images each; give lists of {each}")
    return tuple(_picture(one, f"{where}[{j}]", channel_order) for j, one in enumerate(group))


def _picture(picture: Any, where: str, channel_order: str) -> str | Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, np.ndarray):
        return _of_array(picture, where, channel_order)
    if not isinstance(picture, str | PathLike):
        raise TypeError(
            f"{where} is a {type(picture).__name__}; expected a path, an array of uint8 [height, width, 3], or a picture of "
            "Pillow"
        )
    path = str(picture)
    if "://" in path:
        raise ValueError(f"{where} is {path!r}: nothing is downloaded here; fetch the file and give its path")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{where} is {path!r}: no such file; check the path")
    return path


def _of_array(array: np.ndarray, where: str, channel_order: str) -> Image.Image:
    channels = 1 if array.ndim == 2 else array.shape[-1]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise ValueError(
            f"{where} is an array of {array.dtype} {list(array.shape)}; expected uint8 [height, width, 3], or 4 channels with "
            "the last one transparency, or none or one for grey"
        )
    if channels == 1:
        return Image.fromarray(array.reshape(array.shape[:2]))
    if channel_order == "bgr":
        array = array[..., [2, 1, 0, *range(3, channels)]]
    return Image.fromarray(np.ascontiguousarray(array))


def _is_picture(value: object) -> bool:
    return isinstance(value, str | PathLike | np.ndarray | Image.Image)


def _sequence(value: Any, where: str) -> Sequence:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError(f"{where} is a {type(value).__name__}; expected {where.split('[')[0]}, one or a list of them")
    return value
