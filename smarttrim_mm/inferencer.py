"""Answers about a caller's own images, with what each of them took."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.utils.data import DataLoader

from smarttrim_mm.datasets.given import GivenData, GivenItem, Picture, Texts, given_items, given_pipeline
from smarttrim_mm.datasets.transforms import TokenizeQuestions
from smarttrim_mm.datasets.vision_language import VisionLanguageDataset
from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.engine.calibration import calibrated_speedup
from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.models.all_pairs import score_pairs
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.registry import DATASETS
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file
from smarttrim_mm.visualization.figures import save
from smarttrim_mm.visualization.findings import pair_figures
from smarttrim_mm.visualization.traces import trace_pairs

Images = Picture | Sequence[Picture] | Sequence[Sequence[Picture]]


@dataclass(frozen=True)
class Spent:
    """What one answer took.

    Attributes:
        tokens: Per ``'<step>/<stream>'`` (``'image.3/image'``), kept tokens and real tokens; of a text's images, the mean.
        heads: Per ``'<step>/<attention>'`` (``'fusion.1/text.cross'``) that was decided on, heads that were on and heads.
        multiply_adds: Of the whole model, the policy's own included, as if the input had come alone.
        dense_multiply_adds: Of the untrimmed model.
    """

    tokens: Mapping[str, tuple[float, float]]
    heads: Mapping[str, tuple[float, float]]
    multiply_adds: float
    dense_multiply_adds: float

    @property
    def speedup(self) -> float:
        """Dense over decided multiply-adds."""
        return self.dense_multiply_adds / self.multiply_adds


@dataclass(frozen=True, eq=False)
class TrimResult:
    """The answer to one text about an image, or to an image alone.

    Attributes:
        images: The image's path, or what it is, in words; of a text about several images, all of them.
        text: What was asked; None: nothing.
        answer: The likeliest class, by name or as ``'class 3'``, or what was written; None of captions, pairs and boxes.
        score: Its probability, 0-1; of a pair for retrieval, the pair's score, any number; None of what was written.
        caption: What a model that writes has written; else None.
        box: Where a model of grounding finds what the text names: left, top, right, bottom in pixels of the image; else None.
        scores: Probabilities of all classes, fp32 [C]; None of what was written, of pairs and of boxes.
        classes: Names of the classes; None: not known.
        spent: What it took.
    """

    images: tuple[str, ...]
    text: str | None
    answer: str | None
    score: float | None
    caption: str | None
    box: tuple[float, ...] | None
    scores: Tensor | None
    classes: tuple[str, ...] | None
    spent: Spent

    @property
    def said(self) -> str:
        """What the model says, in words."""
        if self.caption is not None:
            return self.caption
        if self.box is not None:
            return "box " + ", ".join(f"{edge:.1f}" for edge in self.box)
        return f"score {self.score:.2f}" if self.answer is None else self.answer

    def best(self, limit: int | None = None) -> list[tuple[str, float]]:
        """Classes by name with their probabilities, best first; empty of captions, pairs and boxes.

        Args:
            limit: Most classes; None: all.
        """
        if self.scores is None:
            return []
        values, order = self.scores.sort(descending=True, stable=True)
        rows = zip(order[:limit].tolist(), values[:limit].tolist(), strict=True)
        return [(_class_name(number, self.classes), value) for number, value in rows]

    def to_dict(self, limit: int | None = None) -> dict[str, Any]:
        """Plain values, for JSON; fields that the model's kind of answer has not are left out.

        Args:
            limit: Most classes in ``scores``; None: all.
        """
        spent = {
            "multiply_adds": self.spent.multiply_adds,
            "dense_multiply_adds": self.spent.dense_multiply_adds,
            "speedup": self.spent.speedup,
            "tokens": {name: list(counts) for name, counts in self.spent.tokens.items()},
            "heads": {name: list(counts) for name, counts in self.spent.heads.items()},
        }
        fields = {"text": self.text, "answer": self.answer, "score": self.score, "caption": self.caption, "box": self.box}
        scores = {} if self.scores is None else {"scores": [list(row) for row in self.best(limit)]}
        known = {name: value for name, value in fields.items() if value is not None}
        return {"images": list(self.images), **known, **scores, "spent": spent}


class TrimInferencer:
    """A trained model, ready to answer about images that belong to no data set.

    Images go through the config's test pipeline and pre-processor, so that answers are those of ``tools/test.py``. Neither the
    data set's files nor a network are needed, and a checkpoint never runs code. Names of the classes are the answers of the
    model's config, or those that the checkpoint was trained with, or else the config's data set's, as far as its files are
    there; without any, answers are called ``'class 3'``.

    Args:
        config: The config file of the training.
        checkpoint: File written by ``tools/train.py`` or ``tools/calibrate.py``.
        speedup: The speed-up that the checkpoint must have been calibrated to, or else trained for; None: whatever it is.
        device: ``'cpu'``, ``'cuda:0'``; None: the device at hand.
        cfg_options: Settings of the config to change, by dotted name.

    Attributes:
        model: The model, in evaluation mode.
        speedup: The speed-up that the checkpoint was calibrated to or else trained for; None: not known.
        reads_text: Whether a text is asked for with each image.
        images_per_text: Images that a text is about.
        classes: Names of the classes; None: not known, or there are none.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If the checkpoint is damaged, of another config or of another speed-up, the device is unknown, or the config
            has no model or no test pipeline.
        TypeError: If the config's model is no ``TrimmedVLM``.
    """

    def __init__(
        self,
        config: str | PathLike,
        checkpoint: str | PathLike,
        speedup: float | None = None,
        device: str | torch.device | None = None,
        cfg_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.device = _checked_device(device)
        self.cfg = read_config(str(config), cfg_options)
        dataset = _test_dataset(self.cfg)
        meta = load_checkpoint_file(checkpoint, mmap=True).get("meta") or {}
        self.model = build_model(self.cfg, str(checkpoint), self.device)
        self.speedup = _known_speedup(self.model, meta)
        _check_speedup(speedup, self.speedup, meta, config, checkpoint)
        backbone = self.model.backbone
        shape: Mapping[str, int] = getattr(backbone, "input_format", {})
        self.images_per_text = shape.get("images_per_text", 1)
        steps = Compose(dataset.pipeline).transforms
        tokenizes = any(isinstance(step, TokenizeQuestions) for step in steps)
        # a text that no layer reads is what captions continue
        writes = tokenizes and not any("text" in step.streams() for stage in backbone.steps.values() for step in stage)
        prompt = _prompt(dataset, steps) if writes else None
        self.reads_text = tokenizes and not writes
        self.classes: tuple[str, ...] | None = None
        if not writes and not self.model.ranks_texts:
            self.classes = _classes(backbone, meta, dataset)
            _check_classes(self.classes, shape.get("num_classes"), config)
        self._settings: dict[str, Any] = {
            "pipeline": given_pipeline(steps),
            "prompt": prompt,
            "image_size": dataset.get("image_size"),
            "classes": self.classes,
        }

    def __call__(
        self,
        images: Images,
        texts: Texts | None = None,
        *,
        batch_size: int = 8,
        progress: bool = False,
        channel_order: str = "rgb",
        vis_dir: str | PathLike | None = None,
    ) -> list[TrimResult]:
        """Answers.

        Args:
            images: An image or a list of them: paths, arrays uint8 [height, width, 3] (or with transparency, or grey), or
                pictures of Pillow. For a model whose texts are about several images, lists of so many.
            texts: A text for all images; or of a single image, its texts; or of each image, its text or texts. None for a model
                that answers about images alone.
            batch_size: Images that run at once, each with its texts; answers do not depend on it.
            progress: Whether a bar shows the time left.
            channel_order: Of arrays: ``'rgb'`` or ``'bgr'``.
            vis_dir: Folder for pictures of what was kept of each image, and by which scores, ``0000_NAME_pruned_patches.png``,
                ``_keep_scores``, ``_head_map`` and ``_head_scores`` as far as the policy decides so; None: none.

        Returns:
            A result for each text of each image, in the order of the images and then of their texts.

        Raises:
            TypeError: If an image or a text is none.
            ValueError: If images and texts do not fit together or the model, a text is empty, or an image is a URL, unreadable,
                or of a size that the model does not take.
            FileNotFoundError: If an image is missing.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        items = given_items(images, texts, each=self.images_per_text, reads_text=self.reads_text, channel_order=channel_order)
        data = GivenData(items, **self._settings)
        loader = self._loader(data, batch_size)
        bar = Progress("answering", len(items)) if progress else None
        results: list[TrimResult] = []
        for number, batch in enumerate(loader):
            own = items[number * batch_size :][:batch_size]
            try:
                answered = self._answer(batch, own)
            except ValueError as error:  # mostly of an image's size, which says nothing about whose it is
                raise ValueError(f"{error} The images: {_sizes(batch, own)}") from error
            for i, found in enumerate(answered):
                if vis_dir is not None:
                    self._draw(loader, number * batch_size + i, found, Path(vis_dir))
                results += found
                if bar is not None:
                    bar.advance()
        if bar is not None:
            bar.close()
        return results

    def _loader(self, data: GivenData, batch_size: int) -> DataLoader:
        """The config's test loader on other data, in this process."""
        own = {"dataset": data, "batch_size": batch_size, "sampler": {"type": "DefaultSampler", "shuffle": False}}
        collate = {key: value for key, value in self.cfg.test_dataloader.items() if key == "collate_fn"}
        return Runner.build_dataloader({**own, **collate, "num_workers": 0})

    def _answer(self, batch: dict, items: Sequence[GivenItem]) -> list[list[TrimResult]]:
        """The results of each item."""
        with torch.inference_mode(), autocast(enabled=(self.cfg.get("test_cfg") or {}).get("fp16", False)):
            data = self.model.data_preprocessor(batch, False)
            samples: list[DataSample] = data["data_samples"]
            if self.model.ranks_texts:
                scores, record = score_pairs(self.model, data["inputs"])
                for sample, own in zip(samples, scores.split([len(item.texts) for item in items]), strict=True):
                    sample.set_field(own, "scores", dtype=Tensor)
            else:
                record = self.model.answer(data["inputs"], samples)
        spent = iter(_spent(record))
        return [
            [
                TrimResult(images=item.names, text=text, **self._said(sample, i), spent=next(spent))
                for i, text in enumerate(item.texts or (None,))
            ]
            for item, sample in zip(items, samples, strict=True)
        ]

    def _said(self, sample: DataSample, i: int) -> dict[str, Any]:
        """What the model says of the i-th text."""
        said: dict[str, Any] = dict.fromkeys(("answer", "score", "caption", "box", "scores", "classes"))
        if "scores" in sample:
            return {**said, "score": float(sample.scores[i])}
        if "pred_bboxes" in sample:  # its scores are of a coordinate's word
            return {**said, "box": tuple(sample.pred_bboxes[i].tolist())}
        if "pred_caption" in sample:
            return {**said, "caption": sample.pred_caption}
        if "pred_answers" in sample:
            return {**said, "answer": sample.pred_answers[i]}
        # an image classifier's are mmpretrain's, of the image
        scores = (sample.pred_scores[i] if "pred_scores" in sample else sample.pred_score).float().cpu()
        scores = scores.clone()  # outside inference mode: it may be changed, and used with gradients
        best = int(scores.argmax())
        answer = {"answer": _class_name(best, self.classes), "score": float(scores[best])}
        return {**said, **answer, "scores": scores, "classes": self.classes}

    def _draw(self, loader: DataLoader, index: int, results: Sequence[TrimResult], folder: Path) -> None:
        traces = [
            replace(
                trace,
                predicted=result.said,
                multiply_adds=result.spent.multiply_adds,
                dense_multiply_adds=result.spent.dense_multiply_adds,
            )
            for question, result in enumerate(results)
            for trace in trace_pairs(self.model, loader, index, question)
        ]
        name = results[0].images[0]
        stem = Path(name).stem if Path(name).is_file() else "picture"
        for kind, figure in pair_figures(type(self.model.policy).__name__, traces).items():
            save(figure, folder / f"{index:04d}_{stem}_{kind}.png")


def _spent(record: TrimRecord) -> list[Spent]:
    """What each sample took."""
    decided, dense = record.multiply_adds().tolist(), record.dense_multiply_adds().tolist()
    kept, real = record.kept_tokens(), record.real_tokens()
    tokens = {name: list(zip(kept[name].tolist(), real[name].tolist(), strict=True)) for name in kept}
    number = {f"{entry.step.name}/{name}": gate.shape[1] for entry in record.steps for name, gate in entry.heads.items()}
    heads = {
        name: [(share * number[name], float(number[name])) for share in ratio.tolist()]
        for name, ratio in record.heads().items()
    }
    return [
        Spent(
            {name: counts[i] for name, counts in tokens.items()},
            {name: counts[i] for name, counts in heads.items()},
            decided[i],
            dense[i],
        )
        for i in range(record.samples)
    ]


def _sizes(batch: Mapping[str, Any], items: Sequence[GivenItem]) -> str:
    """The sizes that the pipeline gave images, each with the first that has it."""
    first: dict[tuple[int, ...], str] = {}
    for item, pixels in zip(items, batch["inputs"], strict=True):
        first.setdefault(tuple(pixels.shape[-2:]), ", ".join(item.names))
    return "; ".join(f"{name} is {width} x {height} pixels" for (height, width), name in first.items())


def _class_name(number: int, classes: Sequence[str] | None) -> str:
    return f"class {number}" if classes is None else classes[number]


def _test_dataset(cfg: Config) -> ConfigDict:
    dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    while "dataset" in dataset:  # of a data set that wraps another
        dataset = dataset["dataset"]
    if "pipeline" not in dataset:
        raise ValueError(
            f"{cfg.filename} has no test_dataloader.dataset.pipeline, which says how images and texts are prepared; give the "
            "config of the training"
        )
    return dataset


def _prompt(dataset: ConfigDict, steps: Sequence[Any]) -> str:
    """What a model continues that writes: the data set's, as the config or its class has it, or that of a step."""
    default = inspect.signature(_class_of(dataset).__init__).parameters.get("prompt")
    found = [dataset.get("prompt"), getattr(default, "default", None), *(getattr(step, "prompt", None) for step in steps)]
    texts = [text for text in found if isinstance(text, str)]
    if not texts:
        raise ValueError(
            f"{dataset.type} of test_dataloader has no prompt, which the model's captions continue; set "
            "test_dataloader.dataset.prompt to the training's, such as 'a picture of'"
        )
    return texts[0]


def _classes(backbone: Any, meta: Mapping[str, Any], dataset: ConfigDict) -> tuple[str, ...] | None:
    """Names of the classes, from the first place that has them."""
    cls = _class_of(dataset)
    known = (
        getattr(backbone, "answers", None),
        (meta.get("dataset_meta") or {}).get("classes"),
        (dataset.get("metainfo") or {}).get("classes"),
        getattr(cls, "METAINFO", {}).get("classes"),
    )
    found = next((names for names in known if names), None)
    if found is None and isinstance(cls, type) and issubclass(cls, VisionLanguageDataset):
        try:
            found = DATASETS.build({**dataset, "pipeline": [], "lazy_init": True}).metainfo.get("classes")
        except FileNotFoundError:  # its files may be elsewhere: then the classes have numbers
            return None
    return None if found is None else tuple(found)


def _class_of(dataset: ConfigDict) -> Any:
    return DATASETS.get(dataset.type) if isinstance(dataset.type, str) else dataset.type


def _check_classes(classes: Sequence[str] | None, number: int | None, config: str | PathLike) -> None:
    if classes is not None and number is not None and len(classes) != number:
        raise ValueError(
            f"the model of {config} tells {number} answers apart, and {len(classes)} are named, from {classes[0]!r} to "
            f"{classes[-1]!r}: expected as many. Give the config that the checkpoint was trained with, or its data set's list"
        )


def _known_speedup(model: TrimmedVLM, meta: Mapping[str, Any]) -> float | None:
    calibrated = calibrated_speedup(meta)
    if calibrated is not None:
        return calibrated
    steps = [step for stage in model.backbone.steps.values() for step in stage]
    if not any(model.policy.may_cut(step) for step in steps):
        return 1.0
    return getattr(model.budget, "speedup", None)


def _check_speedup(
    wanted: float | None, known: float | None, meta: Mapping[str, Any], config: str | PathLike, checkpoint: str | PathLike
) -> None:
    if wanted is None or (known is not None and math.isclose(wanted, known, rel_tol=1e-6)):
        return
    how = "was calibrated to" if calibrated_speedup(meta) is not None else "was trained for"
    state = "has no known speed-up" if known is None else f"{how} {known:g}"
    raise ValueError(
        f"speedup is {wanted:g}, but {checkpoint} {state}: expected that, or None. For another one, calibrate it: `python "
        f"tools/calibrate.py {config} {checkpoint} --speedup {wanted:g} --out NEW.pth`, and give NEW.pth"
    )


def _checked_device(name: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(get_device() if name is None else name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device is {str(name)!r}, which this machine or this build of torch has not ({reason}); expected 'cpu', or leave "
            "it out for the device at hand"
        ) from error
    return device
