"""Pictures of a trained model: what it pruned of test images, and how its training went."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import DictAction
from mmengine.visualization.vis_backend import BaseVisBackend, TensorboardVisBackend

from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.utils.checkpoint_io import check_out
from smarttrim_mm.visualization import findings
from smarttrim_mm.visualization.curves import Curves, curves_figure, read_curves
from smarttrim_mm.visualization.findings import gather
from smarttrim_mm.visualization.picture_backend import PictureVisBackend
from smarttrim_mm.visualization.survey import count_inputs
from smarttrim_mm.visualization.traces import locate_pairs
from smarttrim_mm.visualization.trim_visualizer import TrimVisualizer

PATCHES, CURVES = f"{findings.PATCHES}.png", "training_curves.png"
BACKENDS = ("local", "tensorboard")


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/visualize.py``."""
    parser = argparse.ArgumentParser(
        "visualize.py",
        description=f"Draw what a model pruned, layer by layer ({PATCHES}), which heads it kept, by which scores, how its "
        f"compute is spread over the inputs of a split, and with --curves how it was trained ({CURVES}).",
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
    parser.add_argument(
        "--max-inputs",
        type=int,
        default=1000,
        metavar="N",
        help="image-question pairs, drawn at random, that are run for the spread of compute and the share of inputs that keep "
        "a head, and that --num chooses from; 0: the whole split (default: %(default)s)",
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        default=["local"],
        help="where pictures go: PNG files, or events for tensorboard --logdir DIR (default: local)",
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
        The files of the pictures; of the TensorBoard backend there are none.

    Raises:
        ValueError: If a number, the data or the checkpoint does not fit.
        FileNotFoundError: If the config, the checkpoint or a training's scalars are missing.
        ModuleNotFoundError: If TensorBoard is asked for and not installed.
    """
    args = parser().parse_args(argv)
    check_out("--out", args.out, folder=True)
    if args.num < 1:
        raise ValueError(f"--num is {args.num}; expected at least 1")
    if args.max_inputs < 0:
        raise ValueError(f"--max-inputs is {args.max_inputs}; expected at least 1, or 0 for the whole split")
    files = PictureVisBackend(args.out)
    made: dict[str, BaseVisBackend] = {"local": files}
    if "tensorboard" in args.backends:
        made["tensorboard"] = TensorboardVisBackend(args.out)
    visualizer = TrimVisualizer(vis_backends=[made[name] for name in dict.fromkeys(args.backends)])
    runs = [_named_run(text) for text in args.curves]
    cfg = read_config(args.config, args.cfg_options)
    model = build_model(cfg, args.checkpoint)
    loader = build_loader(cfg, args.split, model)
    chosen = locate_pairs(loader.dataset, args.indices) if args.indices else None
    total, limit = count_inputs(loader.dataset), args.max_inputs or None
    bar = Progress("running inputs", total if limit is None else min(limit, total))
    found = gather(
        model,
        loader,
        lambda survey: chosen or survey.choose(args.num),
        limit,
        args.seed,
        on_batch=lambda number: bar.reach(min(bar.done + number, bar.total)),
    )
    bar.close()
    visualizer.add_findings(found)
    if runs:
        visualizer.add_figure(Path(CURVES).stem, curves_figure(runs))
    visualizer.close()
    for picture in files.written:
        print(f"written to {picture}")
    if "tensorboard" in args.backends:
        print(f"written for TensorBoard: tensorboard --logdir {args.out}")
    return files.written


def _named_run(text: str) -> tuple[str, Curves]:
    title, separator, work_dir = text.partition("=")
    if not separator:
        title, work_dir = Path(text).name, text
    return title, read_curves(work_dir)
