"""From a loader's batch of images with questions to the model's batch of image-question pairs."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from mmengine.model import BaseDataPreprocessor
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from smarttrim_mm.inputs import BoxTargets, Targets, TextTargets, VLMInputs
from smarttrim_mm.ops.boxes import centres
from smarttrim_mm.registry import MODELS


@MODELS.register_module()
class VisionLanguagePreprocessor(BaseDataPreprocessor):
    """Normalises and stacks the images, pads the questions and moves both to the model's device.

    Args:
        mean: Per channel, what is subtracted; on the scale of the pixels, 0-255. In the order after ``to_rgb``.
        std: Per channel, what is divided by, likewise.
        to_rgb: Reverse the channels: mmcv loads images as BGR.
        pad_id: The tokenizer's padding id.
        special_ids: The tokenizer's ids of the tokens that begin and end a text. The defaults are RoBERTa's.
        rank_texts: Whether the texts of a training item are alternatives of which one is right (retrieval), and so make one
            sample; else each is a sample of its own.
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
        rank_texts: bool = False,
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
        self.rank_texts = rank_texts

    def forward(self, data: dict, training: bool = False) -> dict:
        """Builds the model's arguments.

        Args:
            data: ``inputs``, a list of an item's image, uint8 [3, height, width], or its K images, [K, 3, height, width], and
                ``data_samples``, a list of as many `DataSample`, as the pipelines' last step and mmengine's
                ``pseudo_collate`` make them.
            training: Whether ``rank_texts`` acts (in evaluation each text is a sample of its own), and whether the targets are
                the answers' token ids, or boxes, where the samples have them (in evaluation they are classes).

        Returns:
            ``inputs``, a `VLMInputs` on the model's device, and ``data_samples`` as they came. An item of K images gives K
            consecutive pairs for each of its texts, which make one sample.

        Raises:
            ValueError: If the images differ in size or number, the token ids do not fit ``pad_id`` and ``special_ids``, the
                items have unequal numbers of texts to rank, or boxes are not one a text or not inside their images.
        """
        images, samples = data["inputs"], data["data_samples"]
        sizes = {tuple(image.shape) for image in images}
        if len(sizes) > 1:
            raise ValueError(f"images of one batch have the shapes {sorted(sizes)}: expected one; add Resize to the pipeline")
        pixels = torch.stack(list(images))
        each = pixels.shape[1] if pixels.dim() == 5 else 1
        counts = torch.tensor([len(sample.input_ids) for sample in samples])
        item = torch.arange(len(samples)).repeat_interleave(counts)  # of each text
        image_index = _every(item, each)
        # one text an item: no index, so that nothing is gathered
        shared = (counts > 1).any()
        question_ids = torch.cat([sample.question_ids for sample in samples])
        texts = self.texts([ids for sample in samples for ids in sample.input_ids], question_ids)
        inputs = replace(
            texts,
            images=self._normalise(self._move(pixels.flatten(0, -4) if each > 1 else pixels)),
            image_index=self._move(image_index) if shared else None,
            image_ids=self._move(_every(torch.tensor([sample.image_id for sample in samples]), each)),
            sample_ids=self._move(_every(question_ids, each)),
            targets=self._to_give(samples, pixels.shape[-2:], len(question_ids)) if training else self._targets(samples),
            text_index=self._move(torch.arange(len(question_ids)).repeat_interleave(each)) if each > 1 else None,
            text_ids=self._move(question_ids) if each > 1 else None,
            pairs_per_sample=each * (self._ranked(counts) if self.rank_texts and training else 1),
        )
        return {"inputs": inputs, "data_samples": samples}

    def texts(self, input_ids: Sequence[Sequence[int]], text_ids: Tensor) -> VLMInputs:
        """A batch of texts without images, on the model's device.

        Args:
            input_ids: Token ids of each of Q texts.
            text_ids: Their stable identities, long [Q].

        Raises:
            ValueError: If the token ids do not fit ``pad_id`` and ``special_ids``.
        """
        each = [torch.as_tensor(ids, dtype=torch.long) for ids in input_ids]
        padded = pad_sequence(each, batch_first=True, padding_value=self.pad_id)
        text_mask = padded != self.pad_id
        special_mask = torch.isin(padded, torch.tensor(self.special_ids))
        self._check(each, text_mask, special_mask)
        return VLMInputs(
            images=self.mean.new_empty(0, 3, 1, 1),
            image_index=None,
            image_ids=self._move(text_ids[:0]),
            input_ids=self._move(padded),
            text_mask=self._move(text_mask),
            special_mask=self._move(special_mask),
            sample_ids=self._move(text_ids),
        )

    def _to_give(self, samples: Sequence[DataSample], size: torch.Size, texts: int) -> Targets | None:
        """What a decoder should give, where the samples have it, else classes."""
        if all("answer_ids" in sample for sample in samples):
            return self._answers(samples)
        if all("gt_bboxes" in sample for sample in samples):
            return self._boxes(samples, size, texts)
        return self._targets(samples)

    def _boxes(self, samples: Sequence[DataSample], size: torch.Size, texts: int) -> BoxTargets:
        """The boxes of the texts."""
        height, width = size
        boxes = torch.cat([torch.as_tensor(sample.gt_bboxes, dtype=torch.float32) for sample in samples])
        inside = (boxes >= 0).all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1) & (boxes[:, 2] <= width) & (boxes[:, 3] <= height)
        if len(boxes) != texts or not inside.all():
            wrong = [box for box, fits in zip(boxes.tolist(), inside, strict=True) if not fits]
            raise ValueError(
                f"{len(boxes)} gt_bboxes for {texts} texts, and {wrong} (left, top, right, bottom) not in an image of {height} "
                f"x {width} pixels: expected one box a text, inside; let the pipeline have only steps that move boxes with the "
                "image, such as mmpretrain.Resize"
            )
        return BoxTargets(self._move(centres(boxes / boxes.new_tensor([width, height, width, height]))))

    def _answers(self, samples: Sequence[DataSample]) -> TextTargets:
        """The answers of the questions, as texts that a decoder should give."""
        answers = [each for sample in samples for each in sample.answer_ids]
        weights = torch.tensor([weight for sample in samples for each in sample.answer_weights for weight in each])
        counts = torch.tensor([len(each) for each in answers])
        texts = self.texts([ids for each in answers for ids in each], torch.arange(int(counts.sum())))
        sample = torch.arange(len(answers)).repeat_interleave(counts)
        return TextTargets(texts.input_ids, texts.text_mask, self._move(weights), self._move(sample), len(answers))

    def _targets(self, samples: Sequence[DataSample]) -> Tensor | None:
        for name in ("soft_targets", "targets"):
            if all(name in sample for sample in samples):
                return self._move(torch.cat([sample.get(name) for sample in samples]))
        return None

    def _ranked(self, counts: Tensor) -> int:
        if (counts != counts[0]).any():
            raise ValueError(
                f"items of one batch have {counts.tolist()} texts to rank: expected equal numbers; let the data set give every "
                "image as many captions"
            )
        return int(counts[0])

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


def _every(indices: Tensor, each: int) -> Tensor:
    """Indices of the parts of what has ``each`` parts: [n] -> [n each]."""
    return (indices[:, None] * each + torch.arange(each)).flatten()
