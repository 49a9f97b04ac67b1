"""Are a config's data complete? Counts them, compares with the published numbers and opens images, without a model."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from mmengine.config import Config, DictAction

from smarttrim_mm.datasets.transforms import LoadImage
from smarttrim_mm.datasets.vision_language import VisionLanguageDataset, image_paths
from smarttrim_mm.engine.building import SPLITS, read_config
from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.registry import DATASETS

_SHOWN = 5  # problems of a split that are written out


@dataclass
class SplitReport:
    """What was found in a split.

    Attributes:
        split: ``'train'``, ``'val'`` or ``'test'``.
        title: Which data set and split this is, in words.
        counts: Lines about the numbers of items, questions and images.
        problems: What is wrong, in words; empty if nothing is.
    """

    split: str
    title: str = ""
    counts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.split}: {self.title}", *(f"  {line}" for line in self.counts)]
        if self.problems:
            count = len(self.problems)
            lines.append(f"  {count} problem{'s' * (count > 1)}{', the first are' * (count > _SHOWN)}")
            lines += [f"    {problem}" for problem in self.problems[:_SHOWN]]
        else:
            lines.append("  nothing is wrong")
        return "\n".join(lines)


def inspect_split(cfg: Config, split: str, num_images: int | None, file: TextIO | None = None) -> SplitReport:
    """Reads a split and opens some of its images; what is wrong is collected, not raised.

    Args:
        cfg: The config.
        split: ``'train'``, ``'val'`` or ``'test'``.
        num_images: Images to open, evenly spread; None: all.
        file: Where the progress is shown; None: the standard output.
    """
    report = SplitReport(split)
    settings = dict(cfg[f"{split}_dataloader"]["dataset"])
    report.title = ", ".join(f"{key}={settings[key]!r}" for key in ("type", "source", "split", "data_root") if key in settings)
    found = DATASETS.get(settings["type"])
    if not (isinstance(found, type) and issubclass(found, VisionLanguageDataset)):  # mmpretrain's are built by a function
        report.problems.append(f"{settings['type']} is no VisionLanguageDataset, and only these can be checked")
        return report
    try:
        # no pipeline: neither a tokenizer's files nor the time of augmenting are needed
        dataset: VisionLanguageDataset = DATASETS.build({**settings, "pipeline": [], "lazy_init": True})
        dataset.problems = report.problems
        dataset.full_init()
    except (ValueError, OSError) as error:  # a file as a whole, so that nothing more can be said of this split
        report.problems.append(str(error))
        return report
    records = [dataset.get_data_info(index) for index in range(len(dataset))]
    images = list(dict.fromkeys(path for record in records for path in image_paths(record)))
    questions = sum(len(record["questions"]) for record in records)
    report.counts.append(f"used: {len(records):,} items, {questions:,} questions, {len(images):,} image files")
    for name, count in dataset.file_counts.items():
        published = dataset.published_counts().get(name)
        told = "" if published is None else f", {'as' if count == published else 'but'} {published:,} are published"
        report.counts.append(f"in the files: {count:,} {name}{told}")
        if published not in (None, count):
            report.problems.append(f"{count:,} {name} were read, but {published:,} are published: fetch the files again")
    _open_images(images, num_images, report, file)
    return report


def _open_images(paths: list[str], limit: int | None, report: SplitReport, file: TextIO | None) -> None:
    """Opens the images that exist; that others are missing was found before."""
    paths = [path for path in paths if Path(path).is_file()]
    if limit is not None and limit < len(paths):
        paths = [paths[index * len(paths) // limit] for index in range(limit)]
    load = LoadImage()
    progress = Progress(f"{report.split}: opening images", len(paths), file=file)
    for path in paths:
        try:
            load({"img_path": path})
        except ValueError as error:
            report.problems.append(str(error))
        progress.advance()
    progress.close()
    report.counts.append(f"opened: {len(paths):,} images")


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/check_data.py``."""
    result = argparse.ArgumentParser(
        "check_data.py",
        description="Check the data of a config before a training: reads the files of each split, compares the counts with the "
        "published ones, and opens images. Everything that is wrong is listed, and the exit status is then 1.",
    )
    result.add_argument("config", help="config file with train_dataloader, val_dataloader or test_dataloader")
    amount = result.add_mutually_exclusive_group()
    amount.add_argument("--num-images", type=int, default=200, metavar="N", help="images of a split to open (default: 200)")
    amount.add_argument("--all-images", action="store_true", help="open every image; takes minutes to hours")
    result.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="change settings of the config: a.b=1 c='[1,2]'",
    )
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Checks every split of a config, prints what was found, and ends with status 1 if something is wrong.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Raises:
        ValueError: If an option does not fit, or the config has no data.
        SystemExit: With status 1, if something is wrong.
    """
    args = parser().parse_args(argv)
    if args.num_images < 1:
        raise ValueError(f"--num-images {args.num_images}: expected at least 1")
    cfg = read_config(args.config, args.cfg_options)
    splits = [split for split in SPLITS if cfg.get(f"{split}_dataloader") is not None]
    if not splits:
        raise ValueError(f"{args.config} has none of {', '.join(f'{split}_dataloader' for split in SPLITS)}: nothing to check")
    wrong = False
    for split in splits:
        report = inspect_split(cfg, split, None if args.all_images else args.num_images)
        print(report, flush=True)
        wrong = wrong or bool(report.problems)
    sys.exit(int(wrong))
