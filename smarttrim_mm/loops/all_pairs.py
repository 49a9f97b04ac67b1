"""Evaluation of retrieval: every image of a split against every text of it."""

from dataclasses import dataclass
from io import StringIO
from itertools import chain, zip_longest
from typing import Any, Literal

import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.runner import TestLoop, ValLoop
from mmengine.runner.amp import autocast

from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.models.all_pairs import PairScorer
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.registry import LOOPS
from smarttrim_mm.utils.launch import unwrapped_model


@dataclass(frozen=True)
class _Text:
    input_ids: tuple[int, ...]
    text_id: int
    image_id: int


class _AllPairs:
    """What validation and test share: see :class:`AllPairsValLoop`."""

    runner: Any
    dataloader: Any
    evaluator: Any
    fp16: bool
    mode: Literal["val", "test"]

    def __init__(self, *args: Any, pairs_per_batch: int = 64, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pairs_per_batch = pairs_per_batch

    def run(self) -> dict[str, float]:
        """Scores every pair of the split.

        Returns:
            The metrics.

        Raises:
            TypeError: If the model is no TrimmedVLM, or has no ranking head.
            ValueError: If an id belongs to two texts.
        """
        self.runner.call_hook(f"before_{self.mode}")
        self.runner.call_hook(f"before_{self.mode}_epoch")
        self.runner.model.eval()
        model = unwrapped_model(self.runner)
        if not isinstance(model, TrimmedVLM):
            raise TypeError(f"the model is a {type(model).__name__}; {type(self).__name__} expects a TrimmedVLM")
        self._score(model)
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        self.runner.call_hook(f"after_{self.mode}_epoch", metrics=metrics)
        self.runner.call_hook(f"after_{self.mode}")
        return metrics

    @torch.no_grad()
    def _score(self, model: TrimmedVLM) -> None:
        texts = self._texts()
        text_ids, image_ids = [text.text_id for text in texts], [text.image_id for text in texts]
        with autocast(enabled=self.fp16):
            bar = self._bar("encoding texts", len(texts))
            scorer = PairScorer(
                model,
                [text.input_ids for text in texts],
                torch.tensor(text_ids),
                pairs_per_batch=self.pairs_per_batch,
                on_batch=lambda number: bar.advance(steps=number),
            )
            bar.close()
            bar = self._bar("scoring pairs", len(self.dataloader.sampler) * len(texts))
            for index, data in enumerate(self.dataloader):
                self.runner.call_hook(f"before_{self.mode}_iter", batch_idx=index, data_batch=data)
                inputs = model.data_preprocessor(data, False)["inputs"]
                scores, trim = scorer.score(
                    inputs, images=len(self.dataloader.dataset), on_batch=lambda number: bar.advance(steps=number)
                )
                samples = data["data_samples"]
                for i, sample in enumerate(samples):
                    sample.set_field(scores[i], "scores", dtype=torch.Tensor)
                    sample.set_field(text_ids, "caption_ids", dtype=list)
                    sample.set_field(image_ids, "caption_image_ids", dtype=list)
                    sample.set_field({name: values[i : i + 1] for name, values in trim.items()}, "trim", dtype=dict)
                self.evaluator.process(data_samples=samples, data_batch=data)
                self.runner.call_hook(f"after_{self.mode}_iter", batch_idx=index, data_batch=data, outputs=samples)
            bar.close()

    def _texts(self) -> list[_Text]:
        """The texts of the split, alike on all ranks."""
        bar = self._bar("reading texts", len(self.dataloader))
        own = []
        for data in self.dataloader:
            for sample in data["data_samples"]:
                ids = zip(sample.input_ids, sample.question_ids.tolist(), strict=True)
                own.append([_Text(tuple(tokens), text_id, sample.image_id) for tokens, text_id in ids])
            bar.advance()
        bar.close()
        items = chain.from_iterable(zip_longest(*all_gather_object(own), fillvalue=()))  # the ranks take turns
        texts: dict[int, _Text] = {}
        for text in chain.from_iterable(items):
            if texts.setdefault(text.text_id, text) != text:  # the sampler may give an item to two ranks
                raise ValueError(
                    f"text {text.text_id} of image {text.image_id} has the id of another text, of image "
                    f"{texts[text.text_id].image_id}: expected question_ids of their own; correct the data set"
                )
        return list(texts.values())

    def _bar(self, what: str, total: int) -> Progress:
        return Progress(f"{self.mode}: {what}", total, file=None if is_main_process() else StringIO())


@LOOPS.register_module()
class AllPairsValLoop(_AllPairs, ValLoop):
    """Validates retrieval: every text and every image of the split is encoded once, and every pair scored.

    For each image the metrics get ``scores`` [M], ``caption_ids`` and ``caption_image_ids`` (id and image of each of the M
    texts), ``image_id``, and ``trim``, whose multiply-adds are those of the image with all its pairs. The split is read twice,
    first for its texts. Each rank scores its own images, with all texts.

    Args:
        runner: The runner.
        dataloader: Its data set gives an item an image, with its texts.
        evaluator: The metrics.
        fp16: Whether to score under autocast.
        pairs_per_batch: Pairs that run at once.
    """

    mode = "val"


@LOOPS.register_module()
class AllPairsTestLoop(_AllPairs, TestLoop):
    """Tests retrieval, as :class:`AllPairsValLoop` validates it."""

    mode = "test"
