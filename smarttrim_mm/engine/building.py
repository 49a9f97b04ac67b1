"""What every tool beside training and testing starts with: a config's model with its weights, and batches of its data."""

from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from smarttrim_mm.hooks.check_vocabulary import check_vocabulary
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.models.checkpoint import check_policy_weights
from smarttrim_mm.models.slicing import adopt_slices
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.registry import MODELS
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file
from smarttrim_mm.utils.config import read_config

__all__ = ["build_loader", "build_model", "model_batches", "read_config"]

SPLITS = ("train", "val", "test")


def build_model(
    cfg: Config, checkpoint: str | None = None, device: torch.device | str | None = None, *, for_counts: bool = False
) -> TrimmedVLM:
    """Builds a config's model, ready for inference.

    Args:
        cfg: The config.
        checkpoint: File of the weights; None: they stay random.
        device: Where it runs; None: the device at hand.
        for_counts: Whether only how much is kept matters, so that a policy whose knob alone says so need not be trained.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is damaged, of another architecture, or has no weights for the config's policy; or if the config has
            no model.
        TypeError: If the config's model is no ``TrimmedVLM``.
    """
    if "model" not in cfg:
        raise ValueError(f"{cfg.filename} has no model; give a config of a model, such as configs/meter/quickstart_dense.py")
    adopt_slices(cfg, checkpoint)
    settings = dict(cfg.model)
    if "data_preprocessor" in cfg:
        settings.setdefault("data_preprocessor", cfg.data_preprocessor)
    model = MODELS.build(settings)
    if not isinstance(model, TrimmedVLM):
        raise TypeError(f"model.type is {cfg.model.type!r}; expected a TrimmedVLM, as in configs/_base_/models/")
    if checkpoint is not None:
        content = load_checkpoint_file(checkpoint)
        weights = content.get("state_dict", content)
        if not (for_counts and model.policy.counts_fixed):
            check_policy_weights(model, weights, checkpoint)
        model.load_state_dict(weights, strict=False)  # the model itself refuses weights of another architecture
    return model.to(get_device() if device is None else device).eval()


def build_loader(cfg: Config, split: str, model: TrimmedVLM | None = None) -> DataLoader:
    """Builds the data loader of a split.

    Args:
        cfg: The config.
        split: ``'train'``, ``'val'`` or ``'test'``.
        model: Who will answer; None: anyone.

    Raises:
        ValueError: If the split is unknown, the config has no data for it, or the model's head has another number of answers.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(map(repr, SPLITS))}")
    settings = cfg.get(f"{split}_dataloader")
    if settings is None:
        raise ValueError(f"{cfg.filename} has no {split}_dataloader; add one, or choose another split")
    loader = Runner.build_dataloader(settings, seed=cfg.get("randomness", {}).get("seed") or 0)
    if model is not None:
        check_vocabulary(model, loader.dataset, f"{split}_dataloader.dataset")
    return loader


def model_batches(model: TrimmedVLM, loader: DataLoader, limit: int | None = None) -> Iterator[VLMInputs]:
    """Goes through a loader's batches as the model takes them in evaluation.

    A model with a ranking head gets every image of a batch with every text of it, as retrieval runs it.

    Args:
        model: Gives the pre-processor and the device.
        loader: The loader.
        limit: Most batches; None: all.
    """
    for number, data in enumerate(loader):
        if number == limit:
            return
        inputs = model.data_preprocessor(data, False)["inputs"]
        yield inputs.all_pairs() if model.ranks_texts else inputs
