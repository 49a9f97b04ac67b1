"""BLEU and CIDEr of captions."""

import importlib
import json
import shutil
import string
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from smarttrim_mm.evaluation.sample_fields import merge_unique, require_fields
from smarttrim_mm.registry import METRICS
from smarttrim_mm.utils.checkpoint_io import write_atomically

TOKENIZATIONS = ("ptb", "plain")


def caption_scores(captions: Mapping[int, str], references: Mapping[int, Sequence[str]], tokenizer: str) -> dict[str, float]:
    """BLEU (Papineni et al., 2002) and CIDEr (arXiv 1411.5726) by the scorers of pycocoevalcap.

    Args:
        captions: The model's, by image.
        references: People's, by image; of the same images.
        tokenizer: ``'ptb'``: Stanford's PTB tokenizer, as in the official evaluation of COCO, which needs Java. ``'plain'``:
            what lies between spaces, lower-cased and without punctuation at its ends; the scores are then not the official
            ones.

    Returns:
        ``Bleu_1`` to ``Bleu_4``, 0-1, and ``CIDEr``, 0-10.

    Raises:
        ImportError: If pycocoevalcap is missing.
        RuntimeError: If the PTB tokenizer fails.
        ValueError: If there are no captions, or the tokenizer is unknown or needs Java that is missing.
    """
    check_tokenizer(tokenizer)
    if not captions or captions.keys() != references.keys():
        differing = sorted(captions.keys() ^ references.keys())
        raise ValueError(
            f"captions of {len(captions)} images and references of {len(references)}, and {len(differing)} are only in one of "
            f"them, such as {differing[:3]}: expected the same images; evaluate the whole split"
        )
    if tokenizer == "plain":
        print_log("plain tokens: BLEU and CIDEr are not the official ones, which need tokenizer='ptb'", logger="current")
    tokenize = _ptb if tokenizer == "ptb" else _plain
    own, people = tokenize({image: [text] for image, text in captions.items()}), tokenize(references)
    bleu, _ = _import("bleu.bleu").Bleu(4).compute_score(people, own, verbose=0)
    cider, _ = _import("cider.cider").Cider().compute_score(people, own)
    return {**{f"Bleu_{n}": float(score) for n, score in enumerate(bleu, start=1)}, "CIDEr": float(cider)}


def check_tokenizer(tokenizer: str) -> None:
    """Refuses a tokenization of :func:`caption_scores` that is not there.

    Raises:
        ImportError: If pycocoevalcap is missing.
        ValueError: If the tokenizer is unknown or needs Java that is missing.
    """
    if tokenizer not in TOKENIZATIONS:
        raise ValueError(f"tokenizer={tokenizer!r}: expected one of {', '.join(map(repr, TOKENIZATIONS))}")
    _import("bleu.bleu")
    if tokenizer == "ptb" and shutil.which("java") is None:
        raise ValueError(
            "tokenizer='ptb' is Stanford's, which needs Java, and there is no `java` on the PATH: install a Java runtime, or "
            "set tokenizer='plain', whose scores are not the official ones"
        )


@METRICS.register_module()
class CaptionScores(BaseMetric):
    """BLEU-1 to BLEU-4 (0-1) and CIDEr (0-10, of which papers print 100 times as much) of the captions of a data set.

    Metrics: ``bleu_1`` to ``bleu_4`` and ``cider``, see :func:`caption_scores`. METEOR and SPICE are those of mmpretrain's
    ``COCOCaption``, which needs Java and the official file of references.

    Args:
        tokenizer: ``'ptb'``, as the official evaluation, or ``'plain'``, which needs no Java.
        out_file: Also write ``[{"image_id": int, "caption": str}, ...]``, COCO's format of results, by image; None: do not.
        **kwargs: Further arguments of mmengine's `BaseMetric`.

    Raises:
        ImportError: If pycocoevalcap is missing.
        ValueError: If the tokenizer is unknown or needs Java that is missing.
    """

    default_prefix = "caption"

    def __init__(self, *, tokenizer: str = "ptb", out_file: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_tokenizer(tokenizer)  # now, not after a training
        self.tokenizer = tokenizer
        self.out_file = out_file

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Notes the captions of a batch, one result an item.

        Args:
            data_batch: Unused.
            data_samples: Dicts with ``image_id``, ``pred_caption``, and ``gt_answers``, a list with the list of references.

        Raises:
            ValueError: If a field is missing, or there are several lists of references.
        """
        for sample in data_samples:
            require_fields(self, sample, ("image_id", "pred_caption", "gt_answers"))
            image, references = int(sample["image_id"]), sample["gt_answers"]
            if len(references) != 1:
                raise ValueError(
                    f"gt_answers of image {image} holds {len(references)} lists of captions: expected one, of all references; "
                    "evaluate a data set with one prompt an image"
                )
            self.results.append([(image, (sample["pred_caption"], tuple(references[0])))])

    def compute_metrics(self, results: list[list[tuple[int, tuple[str, tuple[str, ...]]]]]) -> dict[str, float]:
        """Scores the captions of all images, each counted once.

        Args:
            results: For each item, its image, caption and references.

        Returns:
            The metrics named in the class's docstring.

        Raises:
            ValueError: If an image has two different captions.
        """
        found = merge_unique(results, "image")
        captions = {image: caption for image, (caption, _) in found.items()}
        if self.out_file is not None:
            rows = [{"image_id": image, "caption": captions[image]} for image in sorted(captions)]
            write_atomically(self.out_file, (json.dumps(rows) + "\n").encode())
        scores = caption_scores(captions, {image: references for image, (_, references) in found.items()}, self.tokenizer)
        return {name.lower(): score for name, score in scores.items()}


def _import(name: str) -> Any:
    try:
        return importlib.import_module(f"pycocoevalcap.{name}")
    except ImportError as error:
        raise ImportError(
            f"captions are scored by pycocoevalcap, and it cannot be imported ({error}). Install it:\n"
            "  pip install pycocoevalcap==1.2"
        ) from error


def _ptb(texts: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
    tokenizer = _import("tokenizer.ptbtokenizer").PTBTokenizer()
    found = tokenizer.tokenize({image: [{"caption": text} for text in each] for image, each in texts.items()})
    if {image: len(each) for image, each in found.items()} != {image: len(each) for image, each in texts.items()}:
        raise RuntimeError(
            "the PTB tokenizer did not give back every caption: see what `java` said above; `java -version` should be 1.8 or "
            "later. Without it, set tokenizer='plain', whose scores are not the official ones"
        )
    return found


def _plain(texts: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
    def tokens(text: str) -> str:
        words = (word.strip(string.punctuation) for word in text.lower().split())
        return " ".join(word for word in words if word)

    return {image: [tokens(text) for text in each] for image, each in texts.items()}
