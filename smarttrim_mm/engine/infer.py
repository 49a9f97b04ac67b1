"""Answers about images of one's own, on the command line."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import DictAction

from smarttrim_mm.inferencer import TrimInferencer, TrimResult
from smarttrim_mm.utils.checkpoint_io import check_out, write_atomically
from smarttrim_mm.visualization.cost_bars import unit_of

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_EXAMPLES = """examples:
  one image, two questions      --image cat.jpg --text "what is it?" "what color is it?"
  a question for each image     --image cat.jpg dog.jpg --text "is it a cat?" "what is it?"
  one question for a folder     --image photos/ --text "is there a dog?"
  a sentence about two images   --image left.jpg right.jpg --text "both images show a cat"    (models of NLVR2)
  captions, classes             --image photos/    (models that read no text)
  a list of images and texts    --list FILE.jsonl
"""


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/infer.py``."""
    parser = argparse.ArgumentParser(
        "infer.py",
        description="Let a trained model answer about images of your own, and tell what it took: kept tokens and heads of "
        "each layer, multiply-adds. Images are prepared as tools/test.py prepares them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="config file of the training")
    parser.add_argument("checkpoint", help="file written by train.py or calibrate.py")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--image", nargs="+", metavar="PATH", help="image files, or folders of them; no URLs")
    images.add_argument(
        "--list",
        metavar="FILE",
        help='JSON lines {"image": PATH, "text": TEXT}: several texts or, for NLVR2, two images as lists; paths start at the '
        "file's folder",
    )
    parser.add_argument("--text", nargs="+", metavar="TEXT", help="one for all images, or all for one image, or one an image")
    parser.add_argument(
        "--speedup",
        type=float,
        metavar="X",
        help="refuse a checkpoint that was calibrated to, or trained for, another speed-up (default: take it as it is)",
    )
    parser.add_argument("--device", help="cpu, cuda:0 ... (default: the device at hand)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at once (default: %(default)s)")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="most classes to tell (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="write all results to this JSON file")
    parser.add_argument("--vis", metavar="DIR", help="save a picture of what was kept of each image in this folder")
    parser.add_argument("--quiet", action="store_true", help="do not print the results")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="change settings of the config: a.b=1"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> list[TrimResult]:
    """What ``tools/infer.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Returns:
        The results.

    Raises:
        ValueError: If an argument, an image, a text or the checkpoint does not fit.
        FileNotFoundError: If a file is missing.
    """
    args = parser().parse_args(argv)
    if args.top < 1:
        raise ValueError(f"--top is {args.top}; expected at least 1")
    if args.list is not None and args.text is not None:
        raise ValueError("--text is given with --list; expected the texts in the list alone")
    check_out("--out", args.out)
    check_out("--vis", args.vis, folder=True)
    rows = None if args.list is None else read_rows(args.list)  # before the model, which takes its time
    paths = None if args.image is None else image_files(args.image)
    inferencer = TrimInferencer(args.config, args.checkpoint, args.speedup, args.device, args.cfg_options)
    images, texts = rows or _paired(paths or [], args.text, inferencer.images_per_text)
    results = inferencer(images, texts, batch_size=args.batch_size, progress=True, vis_dir=args.vis)
    if not args.quiet:
        print("\n".join(result_table(result, args.top) for result in results))
    if args.out is not None:
        content = {
            "config": args.config,
            "checkpoint": args.checkpoint,
            "speedup": inferencer.speedup,
            "results": [result.to_dict(args.top) for result in results],
        }
        write_atomically(args.out, (json.dumps(content, indent=1) + "\n").encode())
        print(f"{len(results)} results written to {args.out}")
    if args.vis is not None:
        print(f"pictures written to {args.vis}")
    return results


def result_table(result: TrimResult, top: int = 5) -> str:
    """A result as a few lines of text.

    Args:
        result: The result.
        top: Most classes to tell.
    """
    asked = "" if result.text is None else f"  {result.text!r}"
    classes = " | ".join(f"{name} {score:.3f}" for name, score in result.best(top))
    spent = result.spent
    unit, letter = unit_of(spent.dense_multiply_adds)
    decided, dense = spent.multiply_adds / unit, spent.dense_multiply_adds / unit
    lines = [", ".join(result.images) + asked, f"  {classes or result.said}"]
    lines.append(f"  multiply-adds  {decided:.2f} of {dense:.2f} {letter}  {spent.speedup:.2f}x")
    lines += _layers("tokens", spent.tokens) + _layers("heads", spent.heads)
    return "\n".join(lines)


def image_files(paths: Sequence[str]) -> list[str]:
    """The given files, and those of the given folders by name.

    Args:
        paths: Files and folders.

    Raises:
        ValueError: If a folder has no images.
    """
    files: list[str] = []
    for path in paths:
        if not Path(path).is_dir():
            files.append(path)
            continue
        found = sorted(str(one) for one in Path(path).iterdir() if one.suffix.lower() in SUFFIXES)
        if not found:
            raise ValueError(f"--image {path!r} is a folder without images; expected files {', '.join(sorted(SUFFIXES))}")
        files += found
    return files


def read_rows(path: str) -> tuple[list[Any], list[Any] | None]:
    """Images and texts of a list; no texts if no row has one.

    Args:
        path: A file with a JSON object a line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is none, has no image, or only some have a text.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"--list {path!r}: no such file; check the path")
    images: list[Any] = []
    texts: list[Any] = []
    lines: list[int] = []
    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--list {path!r} is no text in UTF-8 ({error}); save it as UTF-8") from error
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        row = _row(line, f"--list {path!r}, line {number}")
        named = row["image"]
        images.append([str(file.parent / one) for one in named] if isinstance(named, list) else str(file.parent / named))
        texts.append(row.get("text"))
        lines.append(number)
    if not images:
        raise ValueError(f'--list {path!r} is empty; expected lines such as {{"image": "cat.jpg", "text": "what is it?"}}')
    missing = [number for number, text in zip(lines, texts, strict=True) if text is None]
    if missing and len(missing) < len(texts):
        raise ValueError(f"--list {path!r}, line {missing[0]} has no text, and others have one; add it, or take all texts out")
    return images, None if missing else texts


def _row(line: str, where: str) -> dict[str, Any]:
    expected = 'expected an object such as {"image": "cat.jpg", "text": "what is it?"}'
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON ({error}); {expected}") from error
    named = row.get("image") if isinstance(row, dict) else None
    names = named if isinstance(named, list) else [named]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where} is {line[:80]!r}; {expected}")
    asked = row.get("text")
    texts = asked if isinstance(asked, list) else [asked]
    if asked is not None and not (texts and all(isinstance(text, str) and text.strip() for text in texts)):
        raise ValueError(f"{where} has the text {asked!r}; expected words, or a list of texts; write it, or take the line out")
    remote = next((name for name in names if "://" in name), None)
    if remote is not None:
        raise ValueError(f"{where} has the image {remote!r}: nothing is downloaded here; fetch the file and give its path")
    return row


def _paired(paths: list[str], texts: list[str] | None, each: int) -> tuple[Any, Any]:
    """Images and texts as an inferencer takes them."""
    if len(paths) % each:
        raise ValueError(f"--image gives {len(paths)} images, but this model's texts are about {each} each; give {each} a text")
    images: list[Any] = list(paths) if each == 1 else [paths[i : i + each] for i in range(0, len(paths), each)]
    asked = texts[0] if texts is not None and len(texts) == 1 else texts
    return (images[0] if len(images) == 1 else images), asked


def _layers(title: str, counts: Mapping[str, tuple[float, float]]) -> list[str]:
    """A line for each stream or attention: how many there are, and how many are left in each layer."""
    rows: dict[tuple[str, float], list[float]] = {}
    for name, (kept, number) in counts.items():
        step, _, owner = name.rpartition("/")
        stage = step.partition(".")[0]
        same = owner.partition(".")[0] == stage
        rows.setdefault((owner if same else f"{stage}.{owner}", number), []).append(kept)
    return [
        f"  {title if i == 0 else '':<7} {name:<18}{number:>5g} ->{''.join(f'{value:>5g}' for value in kept)}"
        for i, ((name, number), kept) in enumerate(rows.items())
    ]
