"""LAVIS's models that rank: the matrices of its retrieval task, from encodings of which each was made once."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.lavis.model import TrimmedModel
from smarttrim_mm.models.all_pairs import UNSCORED, PairScorer
from smarttrim_mm.models.top_pairs import TopPairScorer, check_top_k

_AT_ONCE = 64  # texts, or pairs
_LENGTH = 35  # tokens of a text, whatever the model's max_txt_len, as in LAVIS


class Ranker(TrimmedModel):
    """``compute_sim_matrix`` of a model that ranks."""

    @torch.no_grad()
    def compute_sim_matrix(self, data_loader: Any, task_cfg: Any) -> tuple[np.ndarray, np.ndarray]:
        """Scores, for each image, its ``k_test`` most similar texts and, for each text, its ``k_test`` most similar images.

        Several processes each take some of the batches. The report counts an image with its pairs as a sample.

        Args:
            data_loader: Its data set has ``text``, M of them, and ``image``, I of them; in every process it gives all images,
                in their order.
            task_cfg: LAVIS's section ``run``, with ``k_test``; more than there are means all.

        Returns:
            Scores of the texts that each image chose [I, M], and of the images that each text chose [M, I]; -100 elsewhere.

        Raises:
            ValueError: If ``k_test`` is missing or below 1, or the loader does not give all images.
        """
        k_test = getattr(task_cfg, "k_test", None)
        if k_test is None:
            raise ValueError(
                "the section run has no k_test: expected how many candidates are re-ranked; LAVIS's files have 128 or 256"
            )
        check_top_k(self.trimmed, k_test)
        texts, images = data_loader.dataset.text, len(data_loader.dataset.image)
        bar = _bar("encoding texts", len(texts))
        scorer = PairScorer(
            self.trimmed, self._texts(texts), pairs_per_batch=_AT_ONCE, on_batch=lambda number: bar.advance(steps=number)
        )
        bar.close()
        top = TopPairScorer(scorer, k_test, images=images)
        own = self._encode(data_loader, top, images)
        bar = _bar("fusing pairs", top.choose(_gather))
        matrices = torch.full((2, images, len(texts)), UNSCORED)
        for numbers, found in zip(own, top.scores(lambda number: bar.advance(steps=number)), strict=True):
            matrices[0, numbers], matrices[1, numbers] = found.of_texts.cpu(), found.of_images.cpu()
            self._spend(found.trim["multiply_adds"], found.trim["dense_multiply_adds"])
        bar.close()
        mine = torch.tensor([number for numbers in own for number in numbers], dtype=torch.long)
        for whose, rows in _gather((mine, matrices[:, mine])):
            matrices[:, whose] = rows
        return matrices[0].numpy(), matrices[1].T.contiguous().numpy()

    def _encode(self, data_loader: Any, top: TopPairScorer, images: int) -> list[Tensor]:
        """Adds this process's batches of images; returns their numbers."""
        rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        bar, own, seen = _bar("encoding images", images), [], 0
        for index, samples in enumerate(data_loader):
            numbers = torch.arange(seen, seen + len(samples["image"]))
            seen += len(numbers)
            if index % processes == rank:
                own.append(numbers)
                top.add(self._images(samples["image"], numbers), numbers)
            bar.reach(seen)
        bar.close()
        if seen != images:
            raise ValueError(
                f"the loader gave {seen} of {images} images: expected all of them in every process; set "
                "run.use_dist_eval_sampler to False, as LAVIS's files do"
            )
        return own

    def _texts(self, texts: list[str]) -> Iterator[VLMInputs]:
        special = torch.tensor([self.tokenizer.cls_token_id, self.tokenizer.sep_token_id], device=self.device)
        for begin in range(0, len(texts), _AT_ONCE):
            words = self.tokenizer(
                texts[begin : begin + _AT_ONCE],
                padding="max_length",
                truncation=True,
                max_length=_LENGTH,
                return_tensors="pt",
            ).to(self.device)
            ids = torch.arange(begin, begin + len(words.input_ids), device=self.device)
            yield VLMInputs(
                images=torch.empty(0, 3, 1, 1, device=self.device),
                image_index=None,
                image_ids=ids[:0],
                input_ids=words.input_ids,
                text_mask=words.attention_mask.bool(),
                special_mask=torch.isin(words.input_ids, special),
                sample_ids=ids,
            )

    def _images(self, images: Tensor, numbers: Tensor) -> VLMInputs:
        none = torch.empty(0, 0, dtype=torch.long, device=self.device)
        return VLMInputs(
            images=images.to(self.device),
            image_index=None,
            image_ids=numbers.to(self.device),
            input_ids=none,
            text_mask=none.bool(),
            special_mask=none.bool(),
            sample_ids=none.flatten(),
        )


def _gather(mine: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    if not dist.is_initialized():
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def _bar(what: str, total: int) -> Progress:
    return Progress(what, total, file=StringIO() if dist.is_initialized() and dist.get_rank() else None)
