"""LAVIS's captioner: its own decoder on what was kept of the images; its task, with references that are on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import BatchEncoding

from smarttrim_mm.backbones.given_tokens import encoding
from smarttrim_mm.backbones.lavis import LavisCaptioner
from smarttrim_mm.backbones.lavis_host import import_lavis
from smarttrim_mm.backbones.writing import NUCLEUS_PENALTY, Writing
from smarttrim_mm.evaluation.caption_scores import caption_scores, check_tokenizer
from smarttrim_mm.inputs import TextTargets
from smarttrim_mm.lavis.model import TrimmedModel, methods_of
from smarttrim_mm.lavis.settings import plain

registry: Any = import_lavis("lavis").registry
main_process: Any = import_lavis("lavis.common.dist_utils").main_process
CaptionTask: Any = import_lavis("lavis.tasks.captioning").CaptionTask


@methods_of(LavisCaptioner)
class Captioner(TrimmedModel):
    """``forward`` and ``generate`` of a captioner."""

    task_loss = {"type": "AnswerGeneration", "per_token": True}

    def forward(self, samples: dict[str, Any]) -> Any:
        """The loss of a batch.

        Args:
            samples: As LAVIS's data sets collate it: ``image``, ``text_input`` (captions, prompt included).

        Returns:
            LAVIS's output with ``loss`` and ``loss_lm``, the decoder's part of it.

        Raises:
            ValueError: If a text ends within the prompt.
        """
        words = self._tokenize(samples["text_input"])
        given, real = self.prompt_length, words.attention_mask.bool()
        short = (real.sum(1) <= given).nonzero().flatten().tolist()
        if short:
            raise ValueError(
                f"text_input {samples['text_input'][short[0]]!r} ends within the prompt, which is {self.prompt!r}: nothing is "
                "left to learn. Set the prompt in text_processor.train too"
            )
        begin = words.input_ids[:, :given]
        prompts = torch.cat([begin, torch.full_like(begin[:, :1], self.tokenizer.sep_token_id)], 1)
        targets = TextTargets(
            words.input_ids[:, given - 1 :],
            real[:, given - 1 :],
            torch.ones(len(begin), device=self.device),
            torch.arange(len(begin), device=self.device),
            len(begin),
        )
        batch = {**samples, "text_input": encoding(prompts, torch.ones_like(prompts))}
        loss = self.learn(batch, targets)[0]
        return self.output_class(loss=loss, loss_lm=self.last_losses["loss_task"])

    def generate(
        self,
        samples: dict[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int = 3,
        max_length: int = 30,
        min_length: int = 10,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        num_captions: int = 1,
    ) -> list[str]:
        """Captions of a batch, those of an image one after the other.

        Args:
            samples: ``image``.
            use_nucleus_sampling: Whether words are drawn; ``repetition_penalty`` then has no effect, as in LAVIS.
            num_beams: Beams of the search; 1: greedily.
            max_length: Most tokens, the prompt's included.
            min_length: Fewest tokens, likewise.
            top_p: Probability of the words that are drawn from.
            repetition_penalty: See :class:`~smarttrim_mm.backbones.writing.Writing`.
            num_captions: Of each image; a search finds the same each time.
        """
        prompts = self.tokenizer([self.prompt] * len(samples["image"]), return_tensors="pt").to(self.device)
        inputs = self.inputs_of({**samples, "text_input": prompts})
        execution = self.trimmed.execution(inputs, self.kind)
        how = Writing(
            num_beams=num_beams,
            max_length=max_length,
            min_length=min_length,
            nucleus=use_nucleus_sampling,
            top_p=top_p,
            repetition_penalty=NUCLEUS_PENALTY if use_nucleus_sampling else repetition_penalty,
        )
        ids = self.backbone.generate(inputs, execution, how, num_captions)
        self._note(execution.record)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text[len(self.prompt) :] for text in texts]

    def _tokenize(self, texts: str | list[str] | BatchEncoding) -> Any:
        return texts if isinstance(texts, BatchEncoding) else super()._tokenize(texts)


@registry.register_task("smarttrim_captioning")
class CaptioningTask(CaptionTask):
    """LAVIS's ``captioning`` with references from files, which LAVIS downloads; scored by BLEU and CIDEr.

    In the section ``run`` of the config, besides LAVIS's settings: ``ground_truth``, a file for each split that is evaluated,
    in COCO's format (``coco_karpathy_val_gt.json``); and ``caption_tokenizer``, ``ptb`` unless it is ``plain``, see
    :func:`~smarttrim_mm.evaluation.caption_scores.caption_scores`.
    """

    ground_truth: Mapping[str, str]
    tokenizer: str

    @classmethod
    def setup_task(cls, cfg: Any) -> CaptioningTask:
        """Reads the config's section ``run``.

        Raises:
            FileNotFoundError: If a file of references is missing.
            ValueError: If a split has none, or the tokenizer is unknown or needs Java that is missing.
        """
        task = super().setup_task(cfg)
        run = cfg.run_cfg
        task.ground_truth, task.tokenizer = plain(run.get("ground_truth")) or {}, run.get("caption_tokenizer", "ptb")
        if not task.report_metric:
            return task
        check_tokenizer(task.tokenizer)
        for split in [*run.get("valid_splits", []), *run.get("test_splits", [])]:
            path = task.ground_truth.get(split)
            if path is None:
                raise ValueError(
                    f"run.ground_truth is {task.ground_truth} and has no {split!r}; name the file with its references, such as "
                    f"coco_karpathy_{split}_gt.json, or set run.report_metric: False"
                )
            if not Path(path).is_file():
                raise FileNotFoundError(f"run.ground_truth.{split} is {path!r}: no such file, and nothing is downloaded here")
        return task

    @main_process
    def _report_metrics(self, eval_result_file: str, split_name: str) -> dict[str, float]:
        """In place of LAVIS's, which downloads the references; it logs and sums the scores as there."""
        found = scores(eval_result_file, self.ground_truth[split_name], self.tokenizer)
        with (Path(registry.get_path("output_dir")) / "evaluate.txt").open("a") as file:
            file.write(json.dumps({split_name: found}) + "\n")
        return {**found, "agg_metrics": found["CIDEr"] + found["Bleu_4"]}


def scores(results: str, ground_truth: str, tokenizer: str) -> dict[str, float]:
    """Scores a file of results.

    Args:
        results: ``[{"image_id": int, "caption": str}, ...]``.
        ground_truth: References in COCO's format: ``{"annotations": [{"image_id": int, "caption": str}, ...]}``.
        tokenizer: See :func:`~smarttrim_mm.evaluation.caption_scores.caption_scores`.

    Raises:
        ValueError: If the references are no such file, or are not of the same images.
    """
    try:
        rows = json.loads(Path(ground_truth).read_text(encoding="utf-8"))["annotations"]
        pairs = [(int(row["image_id"]), row["caption"]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{ground_truth} is no file of references in COCO's format ({error!r}): expected an object with 'annotations', "
            "each with 'image_id' and 'caption'"
        ) from error
    references: dict[int, list[str]] = {}
    for image, caption in pairs:
        references.setdefault(image, []).append(caption)
    found = {row["image_id"]: row["caption"] for row in json.loads(Path(results).read_text(encoding="utf-8"))}
    return caption_scores(found, references, tokenizer)
