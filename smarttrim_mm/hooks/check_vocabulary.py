"""The answers of the data are those of the model's head: checked before weights are loaded or anything is trained."""

import logging
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner
from torch import nn

from smarttrim_mm.registry import HOOKS
from smarttrim_mm.utils.launch import unwrapped_model


def check_vocabulary(model: nn.Module, dataset: Any, name: str) -> None:
    """Refuses a data set with other answers than the model's: of another number, or by name, where the model knows them so.

    Args:
        model: The unwrapped model; one without a backbone that tells its ``input_format`` is not checked.
        dataset: A data set; one whose ``metainfo`` has no ``classes`` is not checked.
        name: Setting of the data set, for the error: ``'train_dataloader.dataset'``.

    Raises:
        ValueError: With both numbers, or with the first answers that differ.
    """
    classes, backbone = _classes(dataset), getattr(model, "backbone", None)
    number = getattr(backbone, "input_format", {}).get("num_classes")
    if classes is None or number is None:
        return
    if number != len(classes):
        setting = "answers to the data set's list" if hasattr(backbone, "answers") else f"num_classes={len(classes)}"
        raise ValueError(
            f"{name} is {_title(dataset)} with {len(classes)} answers, and the model's head has {number}: expected the same "
            f"number. Set model.backbone.{setting}, or correct the data set's vocabulary; a checkpoint needs the data set that "
            "it was trained for"
        )
    answers = getattr(backbone, "answers", None) or ()
    differing = _differing(answers, classes)
    if differing:
        first = differing[0]
        raise ValueError(
            f"{name} is {_title(dataset)}, whose answer {first} is {classes[first]!r}; model.backbone.answers has "
            f"{answers[first]!r} there, and {len(differing)} of its {len(answers)} answers differ: expected the same in the "
            "same order. Give the model that list"
        )


@HOOKS.register_module()
class CheckVocabularyHook(Hook):
    """Refuses a run whose data have other answers than the model, or than the checkpoint that it tests or resumes.

    A training that only starts from a checkpoint's weights may have other answers of the same number; the log says so.
    """

    def before_run(self, runner: Runner) -> None:
        for name, dataset in _datasets(runner).items():
            check_vocabulary(unwrapped_model(runner), dataset, name)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        theirs = (checkpoint.get("meta", {}).get("dataset_meta") or {}).get("classes") or ()
        for name, dataset in _datasets(runner).items():
            ours = _classes(dataset) or ()
            # other numbers are told from the weights, with the names of the heads
            differing = _differing(theirs, ours)
            if len(theirs) != len(ours) or not differing:
                continue
            first = differing[0]
            message = (
                f"{name} is {_title(dataset)}, whose answer {first} is {ours[first]!r}; the checkpoint was trained with "
                f"{theirs[first]!r} there, and {len(differing)} of its {len(ours)} answers differ"
            )
            if isinstance(runner._train_loop, BaseLoop) and not runner._resume:
                print_log(f"{message}: its head is learnt anew", logger="current", level=logging.WARNING)
                return
            raise ValueError(f"{message}: expected the same in the same order; use the vocabulary that it was trained with")


def _datasets(runner: Runner) -> dict[str, Any]:
    """The data sets that the run will use, by the setting that names them."""
    loops = {"train": runner._train_loop, "val": runner._val_loop, "test": runner._test_loop}
    return {
        f"{split}_dataloader.dataset": loop.dataloader.dataset for split, loop in loops.items() if isinstance(loop, BaseLoop)
    }


def _differing(first: Sequence[str], second: Sequence[str]) -> list[int]:
    """The numbers of the answers that are not the same in both."""
    return [number for number, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]]


def _classes(dataset: Any) -> Any:
    return getattr(dataset, "metainfo", {}).get("classes")


def _title(dataset: Any) -> str:
    return dataset.metainfo.get("dataset_name", type(dataset).__name__)
