"""What a model spends on each input of a data set, and which heads it keeps: the cheapest, the dearest, the usual."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from torch import Tensor
from torch.utils.data import DataLoader

from smarttrim_mm.losses.budget import ComputeBudget
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.visualization.traces import questions_of, spread

_CHUNK = 16  # items that run together
Pair = tuple[int, int]  # item, and which of its questions


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        pairs: Item and question of each of n inputs.
        multiply_adds: Decided compute of each, [n].
        dense_multiply_adds: Compute of the untrimmed model, [n].
        heads: Per attention that is decided on (``'fusion.1/text.cross'``), the share of inputs that keep each head, [H].
        target: The speed-up that the model's budget asks for at present; None: it has no such budget.
    """

    pairs: tuple[Pair, ...]
    multiply_adds: np.ndarray
    dense_multiply_adds: np.ndarray
    heads: dict[str, np.ndarray]
    target: float | None = None

    @property
    def shares(self) -> np.ndarray:
        """Decided over dense compute of each input, [n]."""
        return self.multiply_adds / self.dense_multiply_adds

    @property
    def speedup(self) -> float:
        """Dense over decided compute of all inputs."""
        return float(self.dense_multiply_adds.sum() / self.multiply_adds.sum())

    def choose(self, num: int) -> list[Pair]:
        """Inputs of different images that span the cheap to the dear, cheapest first."""
        return [self.pairs[i] for i in spread(self.multiply_adds.tolist(), [item for item, _ in self.pairs], num)]

    def extremes(self, num: int) -> tuple[list[Pair], list[Pair]]:
        """The inputs that cost the least and the greatest share of dense, of different images, the extreme ones first.

        With few images both are fewer, so that none is among both.
        """
        order = np.argsort(self.shares, kind="stable").tolist()
        images = len({item for item, _ in self.pairs})
        cheap = self._first(order, min(num, (images + 1) // 2), set())
        return cheap, self._first(order[::-1], min(num, images // 2), {item for item, _ in cheap})

    def _first(self, order: Sequence[int], num: int, taken: set[int]) -> list[Pair]:
        chosen: dict[int, Pair] = {}
        for item, question in (self.pairs[i] for i in order):
            if len(chosen) < num and item not in taken:
                chosen.setdefault(item, (item, question))
        return list(chosen.values())


@torch.inference_mode()
def take_survey(
    model: TrimmedVLM,
    loader: DataLoader,
    max_inputs: int | None = None,
    seed: int = 0,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Survey:
    """Runs inputs of a data set.

    Args:
        model: The model, in evaluation mode.
        loader: Gives the data set and how its items are put together.
        max_inputs: Items are drawn until there are so many image-text pairs, with all pairs of the last; None: all.
        seed: Of the draw.
        on_batch: Called with the number of inputs of each batch.
    """
    dataset: BaseDataset = loader.dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    pairs: list[Pair] = []
    spent: list[Tensor] = []
    dense: list[Tensor] = []
    kept: dict[str, list[Tensor]] = {}
    for chunk in _chunks(dataset, order, max_inputs):
        data = model.data_preprocessor(loader.collate_fn([dataset[item] for item in chunk]), False)
        record = model.trace(data["inputs"])[1]
        spent.append(record.multiply_adds().cpu())
        dense.append(record.dense_multiply_adds().cpu())
        for entry in record.steps:
            for name, gate in entry.heads.items():
                on = (gate > 0).float().cpu() if entry.rows is None else (gate > 0).float()[entry.rows].cpu()
                kept.setdefault(f"{entry.step.name}/{name}", []).append(on.flatten(0, -2))
        questions = [questions_of(sample) for sample in data["data_samples"]]
        found = [(item, question) for item, count in zip(chunk, questions, strict=True) for question in range(count)]
        pairs += found
        on_batch(len(found))
    budget = model.budget
    return Survey(
        tuple(pairs),
        torch.cat(spent).double().numpy(),
        torch.cat(dense).double().numpy(),
        {name: torch.cat(gates).mean(0).numpy() for name, gates in kept.items()},
        1 / budget.scheduled(1 / budget.speedup) if isinstance(budget, ComputeBudget) else None,
    )


def choose_pairs(model: TrimmedVLM, loader: DataLoader, num: int, seed: int = 0, max_inputs: int = 512) -> list[Pair]:
    """Chooses pairs of different images that span the cheap to the dear, among a random part of the data.

    Args:
        model: The model, in evaluation mode.
        loader: Gives the data set and how its items are put together.
        num: How many.
        seed: Of the random part.
        max_inputs: Its size, in image-text pairs.

    Returns:
        (item, question) of each, cheapest first.
    """
    return take_survey(model, loader, max_inputs, seed).choose(num)


def count_inputs(dataset: BaseDataset) -> int:
    """Image-text pairs of a data set; an image without texts is one."""
    return sum(questions_of(dataset.get_data_info(item)) for item in range(len(dataset)))


def _chunks(dataset: BaseDataset, order: Sequence[int], max_inputs: int | None) -> Iterator[list[int]]:
    left = float("inf") if max_inputs is None else max_inputs
    chunk: list[int] = []
    for item in order:
        chunk.append(item)
        left -= questions_of(dataset.get_data_info(item))
        if len(chunk) == _CHUNK or left <= 0:
            yield chunk
            chunk = []
        if left <= 0:
            return
    if chunk:
        yield chunk
