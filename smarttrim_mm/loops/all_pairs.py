"""Evaluation of retrieval: the images of a split against the texts of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from itertools import chain, zip_longest
from typing import Any, Literal

import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.runner import TestLoop, ValLoop
from mmengine.runner.amp import autocast
from torch import Tensor

from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.models.all_pairs import PairScorer
from smarttrim_mm.models.top_pairs import TopPairScorer, check_top_k
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.registry import LOOPS
from smarttrim_mm.utils.launch import unwrapped_model


@dataclass(frozen=True)
class _Text:
    input_ids: tuple[int, ...]
    text_id: int
    image_id: int


@dataclass(frozen=True)
class _Split:
    """All texts of a split, alike on all ranks.

    Attributes:
        texts: Each once.
        ranks: The first rank that has an image, by its id, in the order of the split.
    """

    texts: list[_Text]
    ranks: dict[int, int]


class _AllPairs:
    """What validation and test share: see :class:`AllPairsValLoop`."""

    runner: Any
    dataloader: Any
    evaluator: Any
    fp16: bool
    mode: Literal["val", "test"]

    def __init__(self, *args: Any, pairs_per_batch: int = 64, top_k: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pairs_per_batch = pairs_per_batch
        self.top_k = top_k
        if top_k is not None:
            check_top_k(self._model(), top_k)

    def run(self) -> dict[str, float]:
        """Scores the pairs of the split.

        Returns:
            The metrics.

        Raises:
            TypeError: If the model is no TrimmedVLM, or has no ranking head.
            ValueError: If an id belongs to two texts.
        """
        self.runner.call_hook(f"before_{self.mode}")
        self.runner.call_hook(f"before_{self.mode}_epoch")
        self.runner.model.eval()
        self._score(self._model())
        metrics = self.evaluator.evaluate(len(self.dataloader.dataset))
        self.runner.call_hook(f"after_{self.mode}_epoch", metrics=metrics)
        self.runner.call_hook(f"after_{self.mode}")
        return metrics

    def _model(self) -> TrimmedVLM:
        model = unwrapped_model(self.runner)
        if not isinstance(model, TrimmedVLM):
            raise TypeError(f"the model is a {type(model).__name__}; {type(self).__name__} expects a TrimmedVLM")
        return model

    @torch.inference_mode()
    def _score(self, model: TrimmedVLM) -> None:
        split = self._read()
        with autocast(enabled=self.fp16):
            bar = self._bar("encoding texts", len(split.texts))
            scorer = PairScorer(
                model,
                self._batches(model, split.texts),
                pairs_per_batch=self.pairs_per_batch,
                on_batch=lambda number: bar.advance(steps=number),
            )
            bar.close()
            if self.top_k is None:
                self._score_all(scorer, split)
            else:
                self._score_top(TopPairScorer(scorer, self.top_k, images=len(split.ranks)), split)

    def _score_all(self, scorer: PairScorer, split: _Split) -> None:
        bar = self._bar("scoring pairs", len(self.dataloader.sampler) * len(split.texts))
        for index, data in enumerate(self.dataloader):
            self.runner.call_hook(f"before_{self.mode}_iter", batch_idx=index, data_batch=data)
            inputs = scorer.model.data_preprocessor(data, False)["inputs"]
            scores, trim = scorer.score(inputs, images=len(split.ranks), on_batch=lambda number: bar.advance(steps=number))
            self._judge(index, data, split, {"scores": scores}, trim)
        bar.close()

    def _score_top(self, scorer: TopPairScorer, split: _Split) -> None:
        numbers = {image_id: number for number, image_id in enumerate(split.ranks)}
        bar = self._bar("encoding images", len(self.dataloader.sampler))
        batches = []
        for data in self.dataloader:
            inputs = scorer.scorer.model.data_preprocessor(data, False)["inputs"]
            ids = [sample.image_id for sample in data["data_samples"]]
            offered = torch.tensor([split.ranks[image_id] == get_rank() for image_id in ids])
            scorer.add(inputs, torch.tensor([numbers[image_id] for image_id in ids]), offered)
            batches.append({"data_samples": data["data_samples"]})  # without the pixels
            bar.advance(steps=len(ids))
        bar.close(f"{scorer.num_bytes / 2**20:.0f} MiB")
        bar = self._bar("fusing pairs", scorer.choose(all_gather_object))
        found = scorer.scores(lambda number: bar.advance(steps=number))
        for index in range(len(batches)):
            data, batches[index] = batches[index], {}  # metrics keep what they need of the scores
            self.runner.call_hook(f"before_{self.mode}_iter", batch_idx=index, data_batch=data)
            top = next(found)
            self._judge(index, data, split, {"scores": top.of_texts, "image_scores": top.of_images}, top.trim)
        bar.close()

    def _judge(self, index: int, data: Any, split: _Split, scores: dict[str, Tensor], trim: dict[str, Tensor]) -> None:
        """Hands a batch to the metrics: scores [I, M] by the fields' names, and what they took, [I] each."""
        samples = data["data_samples"]
        text_ids, image_ids = [text.text_id for text in split.texts], [text.image_id for text in split.texts]
        for i, sample in enumerate(samples):
            for name, rows in scores.items():
                sample.set_field(rows[i], name, dtype=Tensor)
            sample.set_field(text_ids, "caption_ids", dtype=list)
            sample.set_field(image_ids, "caption_image_ids", dtype=list)
            sample.set_field({name: values[i : i + 1] for name, values in trim.items()}, "trim", dtype=dict)
        self.evaluator.process(data_samples=samples, data_batch=data)
        self.runner.call_hook(f"after_{self.mode}_iter", batch_idx=index, data_batch=data, outputs=samples)

    def _batches(self, model: TrimmedVLM, texts: list[_Text]) -> Iterator[VLMInputs]:
        for begin in range(0, len(texts), self.pairs_per_batch):
            some = texts[begin : begin + self.pairs_per_batch]
            yield model.data_preprocessor.texts(
                [text.input_ids for text in some], torch.tensor([text.text_id for text in some])
            )

    def _read(self) -> _Split:
        bar = self._bar("reading texts", len(self.dataloader))
        own = []
        for data in self.dataloader:
            for sample in data["data_samples"]:
                ids = zip(sample.input_ids, sample.question_ids.tolist(), strict=True)
                own.append([_Text(tuple(tokens), text_id, sample.image_id) for tokens, text_id in ids])
            bar.advance()
        bar.close()
        texts: dict[int, _Text] = {}
        ranks: dict[int, int] = {}
        for turn in zip_longest(*all_gather_object(own), fillvalue=()):  # the ranks take turns
            for rank, text in chain.from_iterable(((rank, text) for text in item) for rank, item in enumerate(turn)):
                if texts.setdefault(text.text_id, text) != text:  # the sampler may give an item to two ranks
                    raise ValueError(
                        f"text {text.text_id} of image {text.image_id} has the id of another text, of image "
                        f"{texts[text.text_id].image_id}: expected question_ids of their own; correct the data set"
                    )
                ranks.setdefault(text.image_id, rank)
        return _Split(list(texts.values()), ranks)

    def _bar(self, what: str, total: int) -> Progress:
        return Progress(f"{self.mode}: {what}", total, file=None if is_main_process() else StringIO())


@LOOPS.register_module()
class AllPairsValLoop(_AllPairs, ValLoop):
    """Validates retrieval: every text and every image of the split is encoded once, and pairs are scored: all, or the best.

    For each image the metrics get ``scores`` [M], ``caption_ids`` and ``caption_image_ids`` (id and image of each of the M
    texts), ``image_id``, and ``trim``, whose multiply-adds are those of the image with all its pairs. The split is read twice,
    first for its texts. Each rank scores its own images, with all texts.

    With ``top_k``, each image chooses that many texts and each text that many images, by the similarity of their encodings;
    other pairs get -100. ``scores`` are those of the texts that the image chose, and ``image_scores`` [M] those with the texts
    that chose it. Hooks and metrics see batches without pixels.

    Args:
        runner: The runner.
        dataloader: Its data set gives an item an image, with its texts.
        evaluator: The metrics.
        fp16: Whether to score under autocast.
        pairs_per_batch: Pairs that run at once.
        top_k: How many are scored; more than there are means all; None: all pairs, without choosing.

    Raises:
        TypeError: If there is a ``top_k`` and the model gives no similarities to choose by.
        ValueError: If ``top_k`` is below 1.
    """

    mode = "val"


@LOOPS.register_module()
class AllPairsTestLoop(_AllPairs, TestLoop):
    """Tests retrieval, as :class:`AllPairsValLoop` validates it."""

    mode = "test"
