"""What a model kept of single image-question pairs, ready to be drawn."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.utils.data import DataLoader

from smarttrim_mm.datasets.tokenizers import Tokenizer
from smarttrim_mm.evaluation.sample_fields import right_answer
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.record import StepRecord
from smarttrim_mm.layers.views import modality
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.observed import Observed
from smarttrim_mm.structures import Layout

IMAGE, TEXT = "image", "text"
_WORD = re.compile(r"\w+|[^\w\s]+")


_Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class TraceScores:
    """What a policy's decisions on one pair came from; fp32, NaN where there is no score.

    Attributes:
        patches: Per step that decides on the image's tokens (``'image.3'``), [rows, columns]; NaN at dropped patches.
        words: Per step that decides on the text's, the highest score of a word's tokens, [W].
        heads: Per attention that is decided on (``'fusion.1/text.cross'``), [H].
        threshold: As in :class:`~smarttrim_mm.structures.Scores`.
    """

    patches: Mapping[str, np.ndarray] = field(default_factory=dict)
    words: Mapping[str, np.ndarray] = field(default_factory=dict)
    heads: Mapping[str, np.ndarray] = field(default_factory=dict)
    threshold: float | None = None


@dataclass(frozen=True)
class PairTrace:
    """What was kept of one pair.

    Attributes:
        pixels: The image as the model saw it, RGB uint8 [height, width, 3].
        words: The question's words and punctuation marks, W; none for an image alone.
        patches: Per step that holds the image (``'image.3'``), the patches that are kept when all of the step is decided, bool
            [rows, columns]; one that merged into another is not kept.
        kept_words: Per step that holds the text, the words of which something is kept likewise, bool [W].
        predicted: The model's answer; of a ranking head, the pair's score; of a captioner, its caption; of grounding,
            the box in pixels.
        answer: The right one, or what most people said; None where unknown, or where there is no single one.
        multiply_adds: Decided compute, of all images of the question.
        dense_multiply_adds: Compute of the untrimmed model, likewise.
        heads: Per attention that was decided on (``'fusion.1/text.cross'``), the heads that are on, bool [H].
        scores: Where the decisions came from.
        skipped: Per step of which the image skips a part, what it skips: ``'attention'``, ``'MLP'``, or both: ``'layer'``.
    """

    pixels: np.ndarray
    words: tuple[str, ...]
    patches: dict[str, np.ndarray]
    kept_words: dict[str, np.ndarray]
    predicted: str
    answer: str | None
    multiply_adds: float
    dense_multiply_adds: float
    heads: Mapping[str, np.ndarray] = field(default_factory=dict)
    scores: TraceScores = field(default_factory=TraceScores)
    skipped: Mapping[str, str] = field(default_factory=dict)


@torch.inference_mode()
def trace_pairs(model: TrimmedVLM, loader: DataLoader, item: int, question: int) -> list[PairTrace]:
    """Runs one question on its own and notes what was kept.

    Args:
        model: The model, in evaluation mode.
        loader: Gives the data set and how its items are put together.
        item: Number of the item (an image, or several, with questions or without).
        question: Which of its questions.

    Returns:
        The question with its image, or with each of its images in turn.

    Raises:
        ValueError: If the patches of an image do not fill it.
    """
    dataset: BaseDataset = loader.dataset
    classes = dataset.metainfo.get("classes")
    chosen = dataset[item]
    sample: DataSample = chosen["data_samples"]
    answer = right_answer(sample.to_dict(), question, classes)
    words: list[str] = []
    spans: list[tuple[int, int]] = []
    if "questions" in sample:
        text = sample.questions[question]
        for name in ("input_ids", "question_ids"):
            sample.set_field(sample.get(name)[question : question + 1], name)
        sample.questions = [text]
    data = model.data_preprocessor(loader.collate_fn([chosen]), False)
    inputs: VLMInputs = data["inputs"]
    if "questions" in sample:
        words, spans = word_spans(text, _tokenizer(dataset), int(inputs.text_mask[0].sum()))
    traces = trace_inputs(model, inputs, words, spans, classes)
    if hasattr(model.backbone, "predict"):
        found = model.predict(inputs, [sample])[0]
        if "pred_answers" in found:
            return [replace(trace, predicted=found.pred_answers[0], answer=answer) for trace in traces]
        if (said := found.get("pred_caption") or _box(found)) is not None:  # many captions would be right, and many boxes
            return [replace(trace, predicted=said) for trace in traces]
    return [replace(trace, answer=answer) for trace in traces]


def trace_inputs(
    model: TrimmedVLM,
    inputs: VLMInputs,
    words: Sequence[str] = (),
    spans: Sequence[tuple[int, int]] = (),
    classes: Sequence[str] | None = None,
) -> list[PairTrace]:
    """Runs one sample and notes what was kept, and by which scores.

    Args:
        model: The model, in evaluation mode.
        inputs: A text with its images, or an image.
        words: Words of the text, W.
        spans: For each the range of its tokens.
        classes: Names of the answers.

    Returns:
        A trace for each image.

    Raises:
        ValueError: If the patches of an image do not fill it.
    """
    observed = Observed(model.policy)
    logits, record = model.trace(inputs, policy=observed)
    decided = list(zip(record.steps, observed.noted, strict=True))
    cost, dense = float(record.multiply_adds()[0]), float(record.dense_multiply_adds()[0])
    thresholds = [scores.threshold for _, scores in decided if scores.keep or scores.heads]

    def read(name: str, layout: Layout, grid: Tensor, image: int) -> np.ndarray | None:
        """What a grid over a stream's positions, [B, N], says of patches or words; None: nothing of this image's."""
        number = name.removeprefix(modality(name))
        if number and int(number) != image:
            return None
        row = 0 if number else min(image, layout.batch_size - 1)  # all images read one encoding of the text
        if modality(name) == IMAGE:
            return patch_grid(layout, row, grid, inputs.images.shape[-2:])
        if modality(name) != TEXT or not spans:
            return None
        values = grid[row, -inputs.input_ids.shape[1] :].cpu().numpy()  # before the words a Q-Former has its queries
        return np.array([np.fmax.reduce(values[begin:end]) for begin, end in spans])

    def trace(image: int) -> PairTrace:
        kept: dict[str, _Values] = {IMAGE: {}, TEXT: {}}
        wanted: dict[str, _Values] = {IMAGE: {}, TEXT: {}}
        heads: _Values = {}
        head_scores: _Values = {}
        skipped: dict[str, str] = {}
        for entry, scores in decided:
            step = entry.step.name
            for name, layout in {**entry.tokens, **entry.after}.items():
                found = read(name, layout, layout.kept_grid(), image)
                if found is not None:
                    kept[modality(name)][step] = found
                if found is not None and name in scores.keep:
                    score = read(name, entry.before[name], scores.keep[name], image)
                    assert score is not None
                    wanted[modality(name)][step] = score
                if found is not None and modality(name) == IMAGE and (part := _skipped(entry, name, image)):
                    skipped[step] = part
            heads |= {f"{step}/{name}": _of_image(gate > 0, image) for name, gate in entry.heads.items()}
            head_scores |= {f"{step}/{name}": _of_image(score, image) for name, score in scores.heads.items()}
        return PairTrace(
            pixels=_pixels(model, inputs.images[image]),
            words=tuple(words),
            patches=kept[IMAGE],
            kept_words=kept[TEXT],
            predicted=_prediction(model, logits[0], classes),
            answer=None,
            multiply_adds=cost,
            dense_multiply_adds=dense,
            heads=heads,
            scores=TraceScores(wanted[IMAGE], wanted[TEXT], head_scores, thresholds[0] if thresholds else None),
            skipped=skipped,
        )

    return [trace(image) for image in range(len(inputs.images))]


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
    every = [(item, question) for item in range(len(dataset)) for question in range(questions_of(dataset.get_data_info(item)))]
    beyond = [number for number in numbers if not 0 <= number < len(every)]
    if beyond:
        raise ValueError(f"indices holds {beyond}; this split has the image-question pairs 0 to {len(every) - 1}")
    return [every[number] for number in numbers]


def questions_of(record: DataSample | dict) -> int:
    """Image-text pairs of an item, or of its record; an image without texts is one."""
    questions = record.get("questions")
    return 1 if questions is None else len(questions)


def patch_grid(
    layout: Layout, instance: int = 0, grid: Tensor | None = None, size: tuple[int, int] | torch.Size = (1, 1)
) -> np.ndarray:
    """What is known of an instance's patches, [rows, columns]; class tokens and their like are left out.

    Args:
        layout: How the image's tokens lie.
        instance: Which one.
        grid: Something for each original position, [B, N]; None: whether it is kept, bool.
        size: Height and width of the image.

    Raises:
        ValueError: If the patches do not fill an image of that shape.
    """
    values = (layout.kept_grid() if grid is None else grid)[instance].cpu().numpy()
    values = values if layout.guide_index is None else values[1:]
    rows = round(math.sqrt(len(values) * size[0] / size[1]))
    columns = len(values) // max(rows, 1)
    if rows * columns != len(values) or rows * size[1] != columns * size[0]:
        shape = "square" if size[0] == size[1] else f"image of {size[0]} x {size[1]} pixels"
        raise ValueError(
            f"the image has {len(values)} patches, which form no {shape}; pictures are drawn of square patches only"
        )
    return values.reshape(rows, columns)


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


def _box(sample: DataSample) -> str | None:
    """What a model of grounding found, in words; None of other models."""
    return "box " + ", ".join(f"{edge:.0f}" for edge in sample.pred_bboxes[0].tolist()) if "pred_bboxes" in sample else None


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


def _skipped(entry: StepRecord, stream: str, image: int) -> str | None:
    """What an image's instance skips of its layer in a step; None: nothing."""
    gates = {word: entry.run.get(f"{stream}.{part}") for word, part in (("attention", "attention"), ("MLP", "mlp"))}
    parts = [word for word, gate in gates.items() if gate is not None and not _of_image(gate > 0, image)]
    return "layer" if len(parts) == 2 else parts[0] if parts else None


def _of_image(values: Tensor, image: int) -> np.ndarray:
    """The row of an image, of values [B, ...]: of one instance for each image, or of one for all."""
    return values[min(image, len(values) - 1)].cpu().numpy()
