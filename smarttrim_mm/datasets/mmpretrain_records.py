"""mmpretrain's data sets for this package's models: their records become ours."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset

from smarttrim_mm.registry import DATASETS, TRANSFORMS

_PEOPLE = 10  # who answered each question of VQAv2


@TRANSFORMS.register_module()
class FromMMPretrain(BaseTransform):
    """Turns a record of a data set of mmpretrain into one of ours: the first step of its pipeline.

    A record holds one ``question``, or a ``text`` (or several of an image, in retrieval's testing), or a caption to be written
    (``gt_caption``). mmpretrain's own fields stay, so that its metrics find them after `PackVLInputs`.

    Identities are integers that depend on the files alone: ``question_ids`` is mmpretrain's ``question_id``, ``gt_text_id``
    or ``text_id``, the image's where all captions of an image are together, else the row's number; ``image_id`` is
    mmpretrain's, else a hash of the images' names with their folder's, so that questions of one image share it.

    Args:
        prompt: What captions begin with, as in `COCOKarpathyCaption`.
        ten_answers: Whether ``gt_answer_weight`` are shares of ten people's answers (VQAv2, OK-VQA); they are then written out
            again as ten answers.
        answers: The answers in the order of the classes, for a model that chooses one: a list or a JSON file. The record gets
            ``targets``, or, of ten answers, ``soft_targets`` as in `VQAv2`.
        first_id: Added to both identities, where data sets are joined whose numbers would meet (COCO's and Visual Genome's).
    """

    def __init__(
        self,
        *,
        prompt: str = "a picture of",
        ten_answers: bool = False,
        answers: str | Sequence[str] | None = None,
        first_id: int = 0,
    ) -> None:
        self.prompt = prompt
        self.ten_answers = ten_answers
        self.classes = None if answers is None else {answer: number for number, answer in enumerate(read_answers(answers))}
        self.first_id = first_id

    def transform(self, results: dict) -> dict:
        """Adds ``questions``, ``question_ids``, ``image_id``, and what is known of the answers.

        Args:
            results: A record of mmpretrain's.

        Returns:
            The record with, as in our data sets, ``img_paths`` instead of a list ``img_path``, and those of ``gt_answers``,
            ``gt_answer_weights``, ``answer_types``, ``targets`` and ``soft_targets`` that it has.

        Raises:
            ValueError: If a field is missing or not as mmpretrain writes it, or an answer is no class.
        """
        if isinstance(results.get("img_path"), list):
            results["img_paths"] = results.pop("img_path")
        results["questions"] = self._questions(results)
        image = self._image_id(results)
        results["question_ids"] = [self.first_id + number for number in self._question_ids(results, image)]
        results["image_id"] = self.first_id + image
        if "gt_label" in results:
            results["targets"] = [int(results["gt_label"])]
        if results.get("gt_caption") is not None:
            captions = results["gt_caption"]
            results["gt_answers"] = [[captions] if isinstance(captions, str) else list(captions)]
        if "question" in results:
            self._add_answers(results)
        return results

    def _questions(self, results: dict) -> list[str]:
        if "question" in results:
            texts = [results["question"]]
        elif "text" in results:
            texts = [results["text"]] if isinstance(results["text"], str) else list(results["text"])
        elif "gt_caption" in results:
            texts = [self.prompt]
        else:
            raise ValueError(
                f"{_where(results)} has the fields {sorted(results)}: expected 'question', 'text' or 'gt_caption', as "
                "mmpretrain's data sets of images with texts have them; make FromMMPretrain the first step of its pipeline"
            )
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"{_where(results)} has the texts {texts!r}: expected words; correct or remove the row")
        return texts

    def _image_id(self, results: dict) -> int:
        given = results.get("image_id")
        if given is not None:
            return _number(given, "image_id", results)
        paths = results.get("img_paths") or [results.get("img_path")]
        if None in paths:
            raise ValueError(
                f"a record has the fields {sorted(results)}: expected 'image_id' or 'img_path' to know its image by"
            )
        names = "|".join("/".join(Path(path).parts[-2:]) for path in paths)
        return int.from_bytes(blake2b(names.encode(), digest_size=8).digest()) >> 2  # room below 2^63 for first_id

    def _question_ids(self, results: dict, image: int) -> list[int]:
        count = len(results["questions"])
        if "gt_text_id" in results:
            ids = [_number(one, "gt_text_id", results) for one in results["gt_text_id"]]
            if len(ids) != count:
                raise ValueError(f"{_where(results)} has {count} texts and gt_text_id={ids}: expected a number for each")
            return ids
        for key in ("question_id", "text_id"):
            if key in results:
                return [_number(results[key], key, results)]
        if "gt_caption" in results and not isinstance(results["gt_caption"], str):
            return [image]
        if "sample_idx" not in results or count != 1:
            raise ValueError(
                f"{_where(results)} has {count} texts and the fields {sorted(results)}: expected 'question_id', 'text_id', "
                "'gt_text_id' or, of one text, mmengine's 'sample_idx' to know them by"
            )
        return [_number(results["sample_idx"], "sample_idx", results)]

    def _add_answers(self, results: dict) -> None:
        # VGVQA leaves its answers under other names than the others
        given = results.get("gt_answer", results.get("answers", results.get("answer")))
        if given is None:  # a test split
            return
        texts = [given] if isinstance(given, str) else list(given)
        weights = results.get("gt_answer_weight", results.get("answer_weight"))
        weights = [1 / len(texts)] * len(texts) if weights is None else [float(weight) for weight in weights]
        if not texts or len(texts) != len(weights):
            raise ValueError(
                f"{_where(results)} has the answers {texts!r} with the weights {weights}: expected answers with a weight each, "
                "as mmpretrain's data sets give them"
            )
        joined: dict[str, float] = {}  # cleaning may have made two answers one
        for text, weight in zip(texts, weights, strict=True):
            joined[text] = joined.get(text, 0.0) + weight
        results.setdefault("gt_answer", given)
        results.setdefault("gt_answer_weight", weights)
        counts = self._counts(list(joined.values()), results) if self.ten_answers else [1] * len(joined)
        results["gt_answers"] = [[answer for answer, count in zip(joined, counts, strict=True) for _ in range(count)]]
        results["gt_answer_weights"] = [list(joined.values())]
        if "answer_type" in results:
            results["answer_types"] = [results["answer_type"]]
        if self.classes is not None:
            results.update(self._targets(results["gt_answers"][0], self.classes, results))

    def _counts(self, weights: list[float], results: dict) -> list[int]:
        counts = [round(_PEOPLE * weight) for weight in weights]
        if sum(counts) != _PEOPLE or any(abs(_PEOPLE * w - n) > 1e-6 for w, n in zip(weights, counts, strict=True)):
            raise ValueError(
                f"{_where(results)} has the weights {weights} and ten_answers=True: expected tenths that make up 1; leave "
                "ten_answers out for a data set with another number of answers"
            )
        return counts

    def _targets(self, answers: list[str], classes: dict[str, int], results: dict) -> dict[str, Any]:
        if not self.ten_answers:
            known = [classes[answer] for answer in answers if answer in classes]
            if len(answers) != 1 or not known:
                raise ValueError(
                    f"{_where(results)} has the answers {answers!r}: expected one that is among the {len(classes)} classes; "
                    "complete the list of answers, or leave it out for a model that writes them"
                )
            return {"targets": known}
        from smarttrim_mm.evaluation.vqa_normalisation import normalise_answer

        soft = np.zeros((1, len(classes)), np.float32)
        for answer in map(normalise_answer, answers):
            if answer in classes:
                soft[0, classes[answer]] += 0.3
        return {"soft_targets": soft.clip(max=1)}


@DATASETS.register_module(name="MMPretrainDataset")
def mmpretrain_dataset(*, dataset: dict, answers: str | Sequence[str] | None = None) -> BaseDataset:
    """Builds a data set of mmpretrain, telling what is missing, with the names of its classes.

    The data set can stand in a config by itself, too (``type='mmpretrain.GQA'``); this adds the list of answers, by which
    metrics turn a model's scores into words, and errors that say what to do.

    Args:
        dataset: Config of the data set, ``type='mmpretrain.COCOVQA'``; `FromMMPretrain` is the first step of its pipeline.
        answers: The answers in the order of the classes, a list or a JSON file: the data set's ``metainfo['classes']``; None:
            there are no classes.

    Raises:
        FileNotFoundError: If a file of the data set or of answers is missing.
        KeyError: If there is no such data set.
        ValueError: If a file is not as mmpretrain reads it.
    """
    config = {**dataset, "type": DATASETS.get(dataset["type"])}
    config["pipeline"] = [TRANSFORMS.build(step) for step in config.get("pipeline", ())]
    if answers is not None:
        config["metainfo"] = {**config.get("metainfo", {}), "classes": read_answers(answers)}
    told = f"{dataset['type']} with " + ", ".join(
        f"{key}={config[key]!r}" for key in ("data_root", "ann_file", "question_file", "split") if key in config
    )
    remedy = "docs/mmpretrain_data.md tells where its files come from"
    try:
        return DATASETS.build(config)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{told}: {error}. Correct the path; {remedy}") from error
    # what mmpretrain's readers run into when a row has no such field, or an image is not in its folder
    except (KeyError, IndexError, TypeError, AssertionError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{told} cannot be read ({type(error).__name__}: {error}): expected the files that "
            f"mmpretrain's class is written for, and each image in its folder; {remedy}"
        ) from error


def read_answers(answers: str | Sequence[str]) -> tuple[str, ...]:
    """The answers of a list or of a JSON file with a list.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else than different texts.
    """
    found: Any = answers
    if isinstance(answers, str):
        try:
            found = json.loads(Path(answers).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"answers={answers!r}: no such file; docs/mmpretrain_data.md tells how each list of answers is made"
            ) from error
        except json.JSONDecodeError as error:
            raise ValueError(f"answers={answers!r} is no JSON ({error}): expected a list of answers") from error
    texts = tuple(found) if isinstance(found, list | tuple) else ()
    if not texts or not all(isinstance(text, str) for text in texts) or len(set(texts)) != len(texts):
        raise ValueError(f"answers={answers!r:.80} holds {str(found)[:60]!r}: expected a list of different answers")
    return texts


def _number(value: Any, key: str, results: dict) -> int:
    if isinstance(value, str) and value.isdecimal():  # COCOCaption's '000000522418'
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{_where(results)} has {key}={value!r}: expected a number; correct the row")
    return int(value)


def _where(results: dict) -> str:
    path = results.get("img_paths", results.get("img_path"))
    return f"row {results.get('sample_idx', '?')} (img_path={path!r})"
