"""From a loader's batch of images with questions to the model's batch of image-question pairs."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from smarttrim_mm.registry import MODELS
from smarttrim_mm.structures import VLMInputs


@MODELS.register_module()
class VisionLanguagePreprocessor(BaseDataPreprocessor):
    """Normalises and stacks the images, pads the questions and moves both to the model's device.

    Args:
        mean: Per channel, what is subtracted; on the scale of the pixels, 0-255. In the order after ``to_rgb``.
        std: Per channel, what is divided by, likewise.
        to_rgb: Reverse the channels: mmcv loads images as BGR.
        pad_id: The tokenizer's padding id.
        special_ids: The tokenizer's ids of the tokens that begin and end a text. The defaults are RoBERTa's.
        non_blocking: Copy to the device without waiting.

    Raises:
        ValueError: If mean or std are not three numbers on the scale 0-255.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        mean: Sequence[float] = (127.5, 127.5, 127.5),
        std: Sequence[float] = (127.5, 127.5, 127.5),
        to_rgb: bool = True,
        pad_id: int = 1,
        special_ids: Sequence[int] = (0, 2),
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise ValueError(f"{name}={values!r}: expected three numbers, one a channel")
            if any(0 < value < 1 for value in values):
                raise ValueError(f"{name}={values!r}: expected the scale of the pixels, 0-255; multiply by 255")
        if min(std) <= 0:
            raise ValueError(f"std={std!r}: expected positive numbers")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.to_rgb = to_rgb
        self.pad_id = pad_id
        self.special_ids = tuple(special_ids)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Builds the model's arguments.

        Args:
            data: ``inputs``, a list of I images, uint8 [3, height, width], and ``data_samples``, a list of I
                `DataSample`, as `PackVQAInputs` and mmengine's ``pseudo_collate`` make them.
            training: Unused: both modes are alike.

        Returns:
            ``inputs``, a `VLMInputs` on the model's device, and ``data_samples`` as they came.

        Raises:
            ValueError: If the images differ in size, or the token ids do not fit ``pad_id`` and ``special_ids``.
        """
        images, samples = data["inputs"], data["data_samples"]
        sizes = {tuple(image.shape) for image in images}
        if len(sizes) > 1:
            raise ValueError(f"images of one batch have the shapes {sorted(sizes)}: expected one; add Resize to the pipeline")
        questions = [torch.as_tensor(ids, dtype=torch.long) for sample in samples for ids in sample.input_ids]
        input_ids = pad_sequence(questions, batch_first=True, padding_value=self.pad_id)
        text_mask = input_ids != self.pad_id
        special_mask = torch.isin(input_ids, torch.tensor(self.special_ids))
        self._check(questions, text_mask, special_mask)
        counts = torch.tensor([len(sample.input_ids) for sample in samples])
        # one question an image: no index, so that nothing is gathered
        shared = torch.arange(len(samples)).repeat_interleave(counts) if (counts > 1).any() else None
        targets = [sample.targets for sample in samples if "targets" in sample]
        inputs = VLMInputs(
            images=self._normalise(self._move(torch.stack(list(images)))),
            image_index=None if shared is None else self._move(shared),
            image_ids=self._move(torch.tensor([sample.image_id for sample in samples])),
            input_ids=self._move(input_ids),
            text_mask=self._move(text_mask),
            special_mask=self._move(special_mask),
            sample_ids=self._move(torch.cat([sample.question_ids for sample in samples])),
            targets=self._move(torch.cat(targets)) if len(targets) == len(samples) else None,
        )
        return {"inputs": inputs, "data_samples": samples}

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=self._non_blocking)

    def _normalise(self, images: Tensor) -> Tensor:
        images = images.flip(1) if self.to_rgb else images
        return (images.float() - self.mean) / self.std

    def _check(self, questions: list[Tensor], text_mask: Tensor, special_mask: Tensor) -> None:
        lengths = torch.tensor([len(ids) for ids in questions])
        last = special_mask.gather(1, lengths.unsqueeze(1) - 1).squeeze(1)
        fits = special_mask[:, 0] & last & (text_mask.sum(1) == lengths)
        if not fits.all():
            ids = questions[int(fits.long().argmin())].tolist()
            raise ValueError(
                f"input_ids {ids}: expected to begin and end with one of special_ids={self.special_ids} and to hold no "
                f"pad_id={self.pad_id}; give the pre-processor the ids of the pipeline's tokenizer"
            )
