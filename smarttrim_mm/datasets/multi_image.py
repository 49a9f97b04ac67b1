"""Pipeline steps for items of one image or several: loading, the image size of CLIP's preprocessing, packing."""

from collections.abc import Sequence

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose
from mmpretrain.structures import DataSample

from smarttrim_mm.datasets.transforms import LoadImage
from smarttrim_mm.registry import TRANSFORMS

_AS_THEY_ARE = (
    "image_id",
    "img_path",
    "img_paths",
    "questions",
    "input_ids",
    "answers",
    "gt_answers",
    "answer_types",
    "identifiers",
    "answer_ids",
    "answer_weights",
    "facts",
)
# mmpretrain's own fields, which its metrics read
_MMPRETRAIN = (
    "text",
    "question_id",
    "gt_answer",
    "gt_answer_weight",
    "gt_caption",
    "gt_text_id",
    "gt_image_id",
    "scale_factor",
)
_TENSORS = {
    "question_ids": torch.long,
    "targets": torch.long,
    "soft_targets": torch.float32,
    "gt_label": torch.long,
    "gt_bboxes": torch.float32,
}


@TRANSFORMS.register_module()
class LoadImages(BaseTransform):
    """Loads the images of ``img_paths`` with `LoadImage` and sends each through the same further steps, on its own.

    mmpretrain's ``ApplyToList`` would copy the whole record, questions and all, for each image.

    Args:
        transforms: Configs of the further steps. Random ones draw anew for each image.
        **kwargs: Arguments of `LoadImage`.
    """

    def __init__(self, *, transforms: Sequence[dict] = (), **kwargs: object) -> None:
        self.steps = Compose([LoadImage(**kwargs), *(TRANSFORMS.build(step) for step in transforms)])

    def transform(self, results: dict) -> dict:
        """Adds ``img``, a list of K images, uint8 [height, width, 3].

        Args:
            results: A record with ``img_paths``; its ``image_size``, where there is one, is known to the steps.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a file is empty, truncated or no image.
        """
        shared = {key: results[key] for key in ("image_size",) if key in results}
        results["img"] = [self.steps({"img_path": path, **shared})["img"] for path in results["img_paths"]]
        return results


@TRANSFORMS.register_module()
class ResizeAndCrop(BaseTransform):
    """Resizes the short edge to ``image_size`` and cuts out the centre square, as CLIP's preprocessing and METER's do.

    Pillow's bicubic interpolation smooths when it shrinks; OpenCV's does not.
    """

    def transform(self, results: dict) -> dict:
        """Changes ``img``.

        Args:
            results: A record with ``img``, uint8 [height, width, 3], and ``image_size`` in pixels.

        Raises:
            ValueError: If the record has no ``image_size``.
        """
        size = results.get("image_size")
        if size is None:
            raise ValueError(f"{results.get('img_path')!r} comes without image_size; give the data set the argument image_size")
        height, width = results["img"].shape[:2]
        height, width = (int(size * side / min(height, width)) for side in (height, width))
        image = mmcv.imresize(results["img"], (width, height), interpolation="bicubic", backend="pillow")
        top, left = round((height - size) / 2), round((width - size) / 2)
        results["img"] = image[top : top + size, left : left + size]
        results["img_shape"] = (size, size)
        return results


@TRANSFORMS.register_module()
class PackVLInputs(BaseTransform):
    """Packs a record as a model's item: its image or images, and a `DataSample` with every field that it has.

    Token ids stay lists: each tensor that a loader's worker sends costs a file descriptor.
    """

    def transform(self, results: dict) -> dict:
        """Packs one item.

        Args:
            results: A record with ``img``: an image, uint8 [height, width, 3], or a list of K such images.

        Returns:
            ``inputs``, uint8 [3, height, width] or [K, 3, height, width], and ``data_samples``, a `DataSample` with those of
            ``image_id``, ``img_path``, ``img_paths``, ``questions``, ``input_ids`` (Q lists of ids), ``answers``,
            ``gt_answers``, ``answer_types``, ``identifiers``, ``answer_ids``, ``answer_weights``, ``facts`` (of each question a
            dict of what else the data set says), ``question_ids`` (long [Q]), ``targets`` (long) and ``soft_targets`` (float
            [Q, C]) that the record has; and, of a data set of mmpretrain, of its own fields, with ``gt_label`` (long [1]) and
            ``gt_bboxes`` (float [1, 4]: left, top, right, bottom in pixels of the packed image, if every step before knows of
            boxes) and ``scale_factor`` (how much wider and higher that is than the file, two factors).

        Raises:
            ValueError: If the images differ in size.
        """
        sample = DataSample()
        for key in (*_AS_THEY_ARE, *_MMPRETRAIN):
            if key in results:
                sample.set_field(results[key], key)
        for key, dtype in _TENSORS.items():
            if key in results:
                value = torch.as_tensor(results[key], dtype=dtype)
                sample.set_field(value if value.dim() else value[None], key)
        image = results["img"]
        if isinstance(image, list):
            shapes = [one.shape[:2] for one in image]
            if len(set(shapes)) > 1:
                raise ValueError(
                    f"img_paths={results.get('img_paths')}: the images are {shapes} pixels high and wide, expected one size; "
                    "add ResizeAndCrop to the transforms of LoadImages"
                )
            image = np.stack(image)
        pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, -3)))
        return {"inputs": pixels, "data_samples": sample}
