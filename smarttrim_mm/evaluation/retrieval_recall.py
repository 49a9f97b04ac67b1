"""Recall of retrieval between images and captions."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from smarttrim_mm.evaluation.sample_fields import require_fields
from smarttrim_mm.registry import METRICS

_TOP = (1, 5, 10)


@dataclass(frozen=True)  # no tuple: mmengine would rebuild each, caption by caption
class _ImageRow:
    image_id: Hashable
    scores: Tensor  # [M]
    image_scores: Tensor | None  # [M]
    caption_image_ids: list  # M


def wrong_candidates(scores: Tensor, rows: Tensor, image_scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Counts the wrong candidates that score at least as high as the right one; a hit in the top k has fewer than k.

    Args:
        scores: [I, M], every image against every caption; larger is better.
        rows: long [M], the row of each caption's image.
        image_scores: [I, M], instead of ``scores`` where the images of a caption are ranked; None: the same.

    Returns:
        For each image [I], how many captions of other images reach the best of its own; for each caption [M], how many
        other images reach its own.
    """
    image_scores = scores if image_scores is None else image_scores
    own = rows == torch.arange(len(scores), device=rows.device)[:, None]  # [I, M]
    best_caption = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)  # [I, 1]
    own_image = image_scores.gather(0, rows[None])  # [1, M]
    return ((scores >= best_caption) & ~own).sum(1), ((image_scores >= own_image) & ~own).sum(0)


@METRICS.register_module()
class RetrievalRecall(BaseMetric):
    """Recalls of the two retrievals of Flickr30K and COCO, 0-1, from the scores of all images against all captions.

    After re-ranking there are two scores of a pair: captions are ranked by ``scores``, images by ``image_scores``, so that a
    pair that only a caption chose does not help its image.

    ``text_r1``, ``text_r5``, ``text_r10``: share of images with any of their captions in the top k of all captions;
    ``image_r1``, ``image_r5``, ``image_r10``: share of captions with their image in the top k of all images;
    ``recall_mean``: the mean of these six. Ties count against the model: a hit needs fewer than k wrong candidates that
    score at least as high. Where there are no more than k - 1 wrong candidates, recall at k is therefore 1. The arguments
    are those of mmengine's `BaseMetric`.
    """

    default_prefix = "retrieval"

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps the rows of a batch, one result an image.

        Args:
            data_batch: Unused.
            data_samples: Dicts with ``scores`` [M] (this image against all M captions of the split), ``image_id`` and
                ``caption_image_ids`` [M] (the image of each caption; the same for all images); and, where images are ranked
                by other scores, ``image_scores`` [M].

        Raises:
            ValueError: If a field is missing or of the wrong size, or if a score is NaN.
        """
        for sample in data_samples:
            require_fields(self, sample, ("scores", "image_id", "caption_image_ids"))
            image_id, captions = _plain(sample["image_id"]), list(_plain(sample["caption_image_ids"]))
            rows = {name: sample[name] for name in ("scores", "image_scores") if name in sample}
            for name, row in rows.items():
                if row.shape != (len(captions),):
                    raise ValueError(
                        f"{name} {tuple(row.shape)} of image {image_id}: expected [{len(captions)}], one for each of "
                        "caption_image_ids"
                    )
                if row.isnan().any():
                    raise ValueError(f"{name} of image {image_id} has NaN: expected numbers; look for the step that gives NaN")
            if self.results and self.results[-1].caption_image_ids == captions:
                captions = self.results[-1].caption_image_ids  # shared: held and sent to the main process once
            # a clone: a row that is a view would be sent with the whole of its tensor
            own = {name: row.detach().cpu().clone() for name, row in rows.items()}
            self.results.append(_ImageRow(image_id, own["scores"], own.get("image_scores"), captions))

    def compute_metrics(self, results: list[_ImageRow]) -> dict[str, float]:
        """Ranks the candidates of every image and every caption.

        Args:
            results: The rows of all images.

        Returns:
            The metrics named in the class's docstring, each 0-1.

        Raises:
            ValueError: If an image has two rows, an image has no caption or a caption no image, or if the rows name
                different captions.
        """
        if not results:
            return {}
        captions = results[0].caption_image_ids
        row_of: dict[Hashable, int] = {}
        for i, row in enumerate(results):
            if row.caption_image_ids != captions:
                raise ValueError(
                    f"caption_image_ids of image {row.image_id} differs from that of image {results[0].image_id}: expected "
                    "every image to be scored against the same captions"
                )
            if row_of.setdefault(row.image_id, i) != i:
                raise ValueError(f"image {row.image_id} has two rows of scores: expected one; correct image_id or the sampler")
        unmatched = sorted(map(str, row_of.keys() ^ set(captions)))
        if unmatched:
            raise ValueError(
                f"{len(unmatched)} images have captions but no row of scores, or a row but no captions; the first is "
                f"{unmatched[0]}: expected both of each; evaluate the whole split"
            )
        rows = torch.tensor([row_of[image_id] for image_id in captions])
        scores, image_scores = torch.stack([row.scores for row in results]), None
        if any(row.image_scores is not None for row in results):
            image_scores = torch.stack([row.scores if row.image_scores is None else row.image_scores for row in results])
        text, image = wrong_candidates(scores, rows, image_scores)
        metrics = {
            f"{kind}_r{k}": (wrong < k).double().mean().item()
            for kind, wrong in (("text", text), ("image", image))
            for k in _TOP
        }
        return metrics | {"recall_mean": sum(metrics.values()) / len(metrics)}


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
