"""Batches of a config's data as an application would send them: each pair with an image of its own."""

from collections.abc import Iterator

import torch
from mmengine.dataset import BaseDataset
from torch.utils.data import DataLoader

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM


def draw_pairs(model: TrimmedVLM, loader: DataLoader, *, batch_size: int, rounds: int, seed: int = 0) -> Iterator[VLMInputs]:
    """Draws batches of pairs, each of an image of its own and one of its questions, padded to their longest question.

    Args:
        model: Gives the pre-processor and the device.
        loader: Gives the data set and how its items are put together.
        batch_size: Pairs of a batch.
        rounds: Number of batches.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    dataset: BaseDataset = loader.dataset
    for _ in range(rounds):
        while len(order) < batch_size:
            order += torch.randperm(len(dataset), generator=generator).tolist()
        chosen, order = order[:batch_size], order[batch_size:]
        inputs: VLMInputs = model.data_preprocessor(loader.collate_fn([dataset[i] for i in chosen]), False)["inputs"]
        if inputs.image_index is None:  # one question an image
            yield inputs
            continue
        questions = inputs.image_index.bincount(minlength=batch_size).cpu()
        picks = (torch.rand(batch_size, generator=generator) * questions).long() + questions.cumsum(0) - questions
        yield inputs.select(picks.to(inputs.input_ids.device))
