"""From a loader's batch of images with labels to the model's batch of images."""

from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.registry import MODELS


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """mmpretrain's ``ClsDataPreprocessor``, whose batches become a `VLMInputs` of images alone.

    Args:
        options: Arguments of ``ClsDataPreprocessor``: ``mean``, ``std``, ``to_rgb``, ``num_classes``, ``batch_augments`` ...
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.host: Any = MODELS.build({"type": "ClsDataPreprocessor", "_scope_": "mmpretrain", **options})

    @property
    def mean(self) -> Tensor:
        """What is subtracted, broadcastable to an image; as of `VisionLanguagePreprocessor`, pictures are drawn by it."""
        mean: Tensor = getattr(self.host, "mean", torch.zeros(1, 1, 1, device=self.device))  # of images taken as they are
        return mean

    @property
    def std(self) -> Tensor:
        """What is divided by, likewise."""
        std: Tensor = getattr(self.host, "std", torch.ones(1, 1, 1, device=self.device))
        return std

    def forward(self, data: dict, training: bool = False) -> dict:
        """Builds the model's arguments.

        Args:
            data: ``inputs``, images uint8 [3, height, width], and ``data_samples``, as many of mmpretrain's `DataSample`, as
                ``PackInputs`` makes them. An image's identity is its ``sample_idx``; where that is missing, the place in the
                batch, by which random decisions are then drawn.
            training: Whether batch augmentations act.

        Returns:
            ``inputs``, a `VLMInputs` on the model's device, and ``data_samples`` as mmpretrain leaves them. Targets are the
            labels, or, of batch augmentations, the scores of the classes.

        Raises:
            ValueError: If an image has several labels, or none of them.
        """
        data = self.host(data, training)
        images, samples = data["inputs"], data["data_samples"]
        given = [] if samples is None else samples
        known = len(given) > 0 and all("sample_idx" in sample for sample in given)
        ids = torch.tensor([sample.sample_idx for sample in given]) if known else torch.arange(len(images))
        inputs = VLMInputs.of_images(images, ids.to(images.device), _targets(given))
        return {"inputs": inputs, "data_samples": samples}


def _targets(samples: list) -> Tensor | None:
    if samples and all("gt_score" in sample for sample in samples):
        return torch.stack([sample.gt_score for sample in samples])
    if not samples or not all("gt_label" in sample for sample in samples):
        return None
    counts = {len(sample.gt_label) for sample in samples}
    if counts != {1}:
        raise ValueError(f"images of one batch have {sorted(counts)} labels; expected one each: several classes are not learnt")
    return torch.cat([sample.gt_label for sample in samples])
