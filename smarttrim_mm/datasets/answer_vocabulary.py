"""The classes of VQAv2: its frequent majority answers."""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from smarttrim_mm.datasets.vision_language import field
from smarttrim_mm.datasets.vqav2 import VQAv2
from smarttrim_mm.utils.checkpoint_io import write_atomically

_FILES = ("v2_mscoco_train2014_annotations.json", "v2_mscoco_val2014_annotations.json")


def answer_vocabulary(majority_answers: Iterable[str], min_count: int = 9) -> list[str]:
    """The normalised answers that are frequent, in METER's order of the classes.

    Args:
        majority_answers: Each question's most frequent answer, as annotated: train, then val.
        min_count: Questions that an answer must be the majority answer of.

    Returns:
        The answers in the order of their first occurrence.
    """
    from smarttrim_mm.evaluation.vqa_normalisation import normalise_answer

    normalise = lru_cache(None)(normalise_answer)  # the same answers come again and again
    counts = Counter(map(normalise, majority_answers))  # a Counter keeps the order in which its keys came
    return [answer for answer, count in counts.items() if count >= min_count]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the vocabulary of the official annotations.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Raises:
        FileNotFoundError: If a file of annotations is missing.
        ValueError: If its content is not as published, or the vocabulary has another length than expected.
    """
    parser = argparse.ArgumentParser(
        "vqav2_answers.py",
        description="Write the list of VQAv2's classes: the normalised majority answers of train and val that occur often "
        "enough, in the order of their first occurrence. From the official files it has 3,129 answers.",
    )
    parser.add_argument("data_root", help=f"folder with {' and '.join(_FILES)}")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: DATA_ROOT/answers.json)")
    parser.add_argument("--min-count", type=int, default=9, metavar="N", help="fewest occurrences of an answer (default: 9)")
    parser.add_argument("--num-classes", type=int, default=3129, metavar="N", help="answers to expect (default: 3129); 0: any")
    args = parser.parse_args(argv)
    root = Path(args.data_root)
    answers = [
        field(row, "multiple_choice_answer", str, f"{root / name}, row {index}")
        for name in _FILES
        for index, row in enumerate(VQAv2.read_list(root / name, "annotations"))
    ]
    vocabulary = answer_vocabulary(answers, args.min_count)
    if args.num_classes not in (0, len(vocabulary)):
        raise ValueError(
            f"{len(vocabulary)} answers occur at least {args.min_count} times in {root}, expected {args.num_classes}: fetch "
            f"the annotations again, or give --num-classes {len(vocabulary)} if the difference is wanted; nothing was written"
        )
    out = Path(args.out) if args.out else root / "answers.json"
    write_atomically(out, (json.dumps(vocabulary) + "\n").encode())
    print(f"{len(vocabulary)} answers of {len(answers)} questions written to {out}")
