"""What a model kept of single image-question pairs, ready to be drawn."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.utils.data import DataLoader

from smarttrim_mm.datasets.tokenizers import Tokenizer
from smarttrim_mm.evaluation.sample_fields import right_answer
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.structures import Layout

IMAGE, TEXT = "image", "text"
_POOL_ITEMS = 128
_WORD = re.compile(r"\w+|[^\w\s]+")


@dataclass(frozen=True)
class PairTrace:
    """What was kept of one pair.

    Attributes:
        pixels: The image as the model saw it, RGB uint8 [height, width, 3].
        words: The question's words and punctuation marks, W.
        patches: Per step that holds the image (``'image.3'``), the kept patches, bool [rows, columns].
        kept_words: Per step that holds the text, the words of which something is kept, bool [W].
        predicted: The model's answer; of a ranking head, the pair's score.
        answer: The right one, or what most people said; None where unknown.
        multiply_adds: Decided compute, of all images of the question.
        dense_multiply_adds: Compute of the untrimmed model, likewise.
    """

    pixels: np.ndarray
    words: tuple[str, ...]
    patches: dict[str, np.ndarray]
    kept_words: dict[str, np.ndarray]
    predicted: str
    answer: str | None
    multiply_adds: float
    dense_multiply_adds: float


@torch.inference_mode()
def trace_pairs(model: TrimmedVLM, loader: DataLoader, item: int, question: int) -> list[PairTrace]:
    """Runs one question on its own and notes what was kept.

    Args:
        model: The model, in evaluation mode.
        loader: Gives the data set and how its items are put together.
        item: Number of the item (an image, or several, with questions).
        question: Which of its questions.

    Returns:
        The question with its image, or with each of its images in turn.

    Raises:
        ValueError: If the patches of an image do not form a square.
    """
    dataset: BaseDataset = loader.dataset
    chosen = dataset[item]
    sample: DataSample = chosen["data_samples"]
    answer = right_answer(sample.to_dict(), question, dataset.metainfo.get("classes"))
    text = sample.questions[question]
    for name in ("input_ids", "question_ids"):
        sample.set_field(sample.get(name)[question : question + 1], name)
    inputs: VLMInputs = model.data_preprocessor(loader.collate_fn([chosen]), False)["inputs"]
    logits, record = model.trace(inputs)
    words, spans = word_spans(text, _tokenizer(dataset), int(inputs.text_mask[0].sum()))

    def trace(image: int) -> PairTrace:
        patches, kept_words = {}, {}
        for entry in record.steps:
            if IMAGE in entry.tokens:
                patches[entry.step.name] = patch_grid(entry.tokens[IMAGE], image)
            if TEXT in entry.tokens:
                kept = entry.tokens[TEXT].kept_grid().cpu().numpy()
                kept = kept[image if len(kept) > 1 else 0]  # all images read one encoding of the text
                kept = kept[-inputs.input_ids.shape[1] :]  # before the words a Q-Former has its queries
                kept_words[entry.step.name] = np.array([kept[begin:end].any() for begin, end in spans])
        return PairTrace(
            pixels=_pixels(model, inputs.images[image]),
            words=tuple(words),
            patches=patches,
            kept_words=kept_words,
            predicted=_prediction(model, logits[0], dataset.metainfo.get("classes")),
            answer=answer,
            multiply_adds=float(record.multiply_adds()[0]),
            dense_multiply_adds=float(record.dense_multiply_adds()[0]),
        )

    return [trace(image) for image in range(len(inputs.images))]


@torch.inference_mode()
def choose_pairs(model: TrimmedVLM, loader: DataLoader, num: int, seed: int = 0) -> list[tuple[int, int]]:
    """Chooses pairs of different images that span the cheap to the dear, among a random part of the data.

    Args:
        model: The model, in evaluation mode.
        loader: Gives the data set and how its items are put together.
        num: How many.
        seed: Of the random part.

    Returns:
        (item, question) of each, cheapest first.
    """
    dataset: BaseDataset = loader.dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()[:_POOL_ITEMS]
    pairs: list[tuple[int, int]] = []
    costs: list[float] = []
    for chunk in _chunks(order, 16):
        data = model.data_preprocessor(loader.collate_fn([dataset[item] for item in chunk]), False)
        costs += model.trace(data["inputs"])[1].multiply_adds().tolist()
        counts = [len(sample.questions) for sample in data["data_samples"]]
        pairs += [(item, question) for item, count in zip(chunk, counts, strict=True) for question in range(count)]
    return [pairs[i] for i in spread(costs, [item for item, _ in pairs], num)]


def spread(costs: Sequence[float], groups: Sequence[int], num: int) -> list[int]:
    """Indices of values that span from the least to the greatest, at even ranks, at most one of a group.

    Args:
        costs: The values.
        groups: The group of each.
        num: How many; fewer are returned if there are fewer groups.
    """
    ranked = sorted(range(len(costs)), key=lambda i: costs[i])
    chosen: list[int] = []
    taken: set[int] = set()
    wanted = np.linspace(0, len(ranked) - 1, min(num, len(set(groups)))).round().astype(int)
    for rank in wanted:
        near = sorted(range(len(ranked)), key=lambda r: abs(r - rank))
        free = next(ranked[r] for r in near if groups[ranked[r]] not in taken)
        chosen.append(free)
        taken.add(groups[free])
    return sorted(chosen, key=lambda i: costs[i])


def locate_pairs(dataset: BaseDataset, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Finds pairs by their number, counted through the data set in its order.

    Args:
        dataset: The data set.
        numbers: The pairs' numbers, from 0.

    Returns:
        (item, question) of each.

    Raises:
        ValueError: If a number is out of range.
    """
    every = [
        (item, question) for item in range(len(dataset)) for question in range(len(dataset.get_data_info(item)["questions"]))
    ]
    beyond = [number for number in numbers if not 0 <= number < len(every)]
    if beyond:
        raise ValueError(f"indices holds {beyond}; this split has the image-question pairs 0 to {len(every) - 1}")
    return [every[number] for number in numbers]


def patch_grid(layout: Layout, instance: int = 0) -> np.ndarray:
    """Kept patches of an instance, bool [rows, columns]; the class token is left out.

    Raises:
        ValueError: If they do not form a square.
    """
    kept = layout.kept_grid()[instance].cpu().numpy()
    kept = kept if layout.guide_index is None else kept[1:]
    side = math.isqrt(len(kept))
    if side * side != len(kept):
        raise ValueError(f"the image has {len(kept)} patches, which form no square; pictures are drawn of square images only")
    return kept.reshape(side, side)


def word_spans(question: str, tokenizer: Tokenizer, length: int) -> tuple[list[str], list[tuple[int, int]]]:
    """The words of a question and the tokens that each became.

    Args:
        question: The question.
        tokenizer: What made the tokens; how many a word takes is read off from beginnings of the question.
        length: Tokens of the question as the model saw it, T, begin and end tokens included.

    Returns:
        The words that the model saw, and for each the range of its tokens.
    """
    words, spans, begin = [], [], 1
    for match in _WORD.finditer(question):
        end = min(len(tokenizer(question[: match.end()], 2 + 4 * len(question))) - 1, length - 1)
        if end > begin:
            words.append(match.group())
            spans.append((begin, end))
            begin = end
    return words, spans


def _prediction(model: TrimmedVLM, logits: Tensor, classes: Sequence[str] | None) -> str:
    """The answer of one sample in words, from its logits [C]."""
    if model.ranks_texts:
        return f"score {float(logits[0]):.2f}"
    predicted = int(logits.argmax())
    return classes[predicted] if classes else f"class {predicted}"


def _tokenizer(dataset: BaseDataset) -> Tokenizer:
    for transform in dataset.pipeline.transforms:
        if hasattr(transform, "tokenizer"):
            return transform.tokenizer
    raise ValueError(f"the pipeline of {type(dataset).__name__} has no TokenizeQuestions; it tells which token is which word")


def _pixels(model: TrimmedVLM, image: Tensor) -> np.ndarray:
    preprocessor = model.data_preprocessor
    image = image * preprocessor.std + preprocessor.mean
    return image.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def _chunks(values: Sequence[int], size: int) -> Iterator[list[int]]:
    for begin in range(0, len(values), size):
        yield list(values[begin : begin + size])
