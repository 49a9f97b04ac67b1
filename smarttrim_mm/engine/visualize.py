"""Pictures of a trained model: what it pruned of test images, and how its training went."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import DictAction

from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.visualization.curves import draw_curves, read_curves
from smarttrim_mm.visualization.kept_patches import draw_kept
from smarttrim_mm.visualization.traces import PairTrace, choose_pairs, locate_pairs, trace_pairs

PATCHES, CURVES = "pruned_patches.png", "training_curves.png"


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/visualize.py``."""
    parser = argparse.ArgumentParser(
        "visualize.py",
        description=f"Draw what a model pruned, layer by layer ({PATCHES}), and with --curves how it was trained ({CURVES}).",
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="file written by train.py or calibrate.py")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the pictures")
    parser.add_argument("--num", type=int, default=6, help="image-question pairs, from cheap to dear (default: %(default)s)")
    parser.add_argument("--split", default="test", help="data of the config: train, val or test (default: %(default)s)")
    parser.add_argument(
        "--indices",
        type=int,
        nargs="+",
        metavar="N",
        help="draw these pairs instead, counted from 0 in the order of the split (that of test.py --out)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the part of the split to choose from (default: %(default)s)")
    parser.add_argument(
        "--curves", nargs="+", default=[], metavar="[TITLE=]WORK_DIR", help="trainings to draw side by side, in their order"
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="change settings of the config: a.b=1"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """What ``tools/visualize.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Returns:
        The pictures.

    Raises:
        ValueError: If a number, the data or the checkpoint does not fit.
        FileNotFoundError: If the config, the checkpoint or a training's scalars are missing.
    """
    args = parser().parse_args(argv)
    if args.num < 1:
        raise ValueError(f"--num is {args.num}; expected at least 1")
    cfg = read_config(args.config, args.cfg_options)
    model = build_model(cfg, args.checkpoint)
    loader = build_loader(cfg, args.split, model)
    numbers = args.indices
    pairs = locate_pairs(loader.dataset, numbers) if numbers else choose_pairs(model, loader, args.num, args.seed)
    bar = Progress("drawing", len(pairs))
    traces: list[PairTrace] = []
    for item, question in pairs:
        traces += trace_pairs(model, loader, item, question)
        bar.advance()
    pictures = [draw_kept(traces, Path(args.out) / PATCHES, f"{type(model.policy).__name__}: what is left at each layer")]
    bar.close()
    if args.curves:
        pictures.append(draw_curves([_named_run(text) for text in args.curves], Path(args.out) / CURVES))
    for picture in pictures:
        print(f"written to {picture}")
    return pictures


def _named_run(text: str) -> tuple:
    title, separator, work_dir = text.partition("=")
    if not separator:
        title, work_dir = Path(text).name, text
    return title, read_curves(work_dir)
