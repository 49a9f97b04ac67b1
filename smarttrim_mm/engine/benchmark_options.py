"""The command line of ``tools/benchmark.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from mmengine.config import DictAction

from smarttrim_mm.engine.clocks import WARMUP
from smarttrim_mm.engine.imposing import SPREAD
from smarttrim_mm.engine.precision import PRECISIONS
from smarttrim_mm.utils.checkpoint_io import check_out

BATCH_SIZES = (1, 8, 32)
ROUNDS, FEW_ROUNDS = 60, 10
_AT_CROSSOVER = (2.0,)


def parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(
        "benchmark.py",
        description="Compare the clock of a trimmed model with its host's dense forward, as it is and with torch's "
        "scaled_dot_product_attention: new unshared image-question pairs each round, contenders in rotated order, medians of "
        "the rounds' ratios, beside the ratios of multiply-adds and of memory.",
        epilog="No data and no weights are needed: benchmark.py CONFIG --speedups 1.5 2 3 times random weights on random "
        "inputs, what is kept being imposed while the policy decides live.",
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="file written by train.py or calibrate.py (default: random weights)")
    parser.add_argument("--out", metavar="DIR", help="folder for benchmark.json, .md and .png; or FILE.json for that alone")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="change settings of the config: a.b=1"
    )
    _add_who(parser.add_argument_group("what is timed"))
    _add_inputs(parser.add_argument_group("on what"))
    _add_how(parser.add_argument_group("how"))
    return parser


def check_profile(args: argparse.Namespace, device: torch.device) -> None:
    """Refuses to take the times of parts on a device that computes while the host goes on.

    Raises:
        ValueError: If ``--profile`` is asked for there.
    """
    if args.profile and device.type != "cpu":
        raise ValueError(f"--profile times functions of the host, and the model is on {device}; use torch.profiler there")


def check_options(args: argparse.Namespace) -> None:
    """Refuses what does not fit, and fills in what one option says of another.

    Raises:
        ValueError: If a number is out of range, or two options exclude each other.
    """
    if args.rounds is None:
        args.rounds = FEW_ROUNDS if args.crossover else ROUNDS
    check_out("--out", args.out, folder=writes_folder(args.out))
    for name, values in (
        ("--rounds", [args.rounds]),
        ("--threads", args.threads),
        ("--batch-sizes", args.batch_sizes),
        ("--answers", [args.answers] if args.answers is not None else None),
        ("--speedups", args.speedups),
    ):
        for value in values or ():
            if not value >= 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
    if args.warmup < 0:
        raise ValueError(f"--warmup is {args.warmup}; expected at least 0")
    if args.crossover:
        _check_crossover(args)
        args.speedups = args.speedups or list(_AT_CROSSOVER)
    if args.speedups:
        args.random_inputs = True
        args.spread = SPREAD if args.spread is None else args.spread
    elif args.spread is not None:
        raise ValueError(f"--spread is {args.spread} without --speedups, at which alone what is kept is drawn; give both")
    elif args.rivals:
        raise ValueError("--rivals is given without --speedups, at which alone the others are held against it; give both")
    if args.random_inputs and args.checkpoint is not None:
        raise ValueError(
            f"checkpoint is {args.checkpoint!r}, and the inputs are to be random, which says nothing about trained weights; "
            "leave one of them out"
        )
    if args.text_length is not None and args.text_lengths is not None:
        raise ValueError(f"--text-length is {args.text_length} and --text-lengths {args.text_lengths}; give one of them")
    for name, value, kind in (
        ("--text-length", args.text_length, "texts"),
        ("--text-lengths", args.text_lengths, "texts"),
        ("--answers", args.answers, "answers"),
    ):
        if value is not None and not args.random_inputs:
            raise ValueError(f"{name} is {value} without --random-inputs: the config's data have their own {kind}")
    if args.text_lengths is not None and args.text_lengths[0] > args.text_lengths[1]:
        raise ValueError(f"--text-lengths is {args.text_lengths}; expected the least first, then the most")


def _check_crossover(args: argparse.Namespace) -> None:
    for name, value in (("--policies", args.policies), ("--rivals", args.rivals), ("--compile", args.compile)):
        if value:
            given = " ".join([name, *value]) if isinstance(value, list) else name
            raise ValueError(f"{given} is given with --crossover, which times the config's policy alone; leave one of them out")
    if args.threads and len(args.threads) > 1:
        raise ValueError(f"--threads is {args.threads} with --crossover; expected one number: run it once for each")


def writes_folder(out: str | None) -> bool:
    """Whether what is written is a folder of files, and no JSON file alone."""
    return out is not None and Path(out).suffix != ".json"


def _add_who(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--policies",
        nargs="+",
        metavar="NAME",
        help="policies to time: a registered name, or a config file with policy = dict(type=...) (default: the config's)",
    )
    group.add_argument(
        "--speedups",
        type=float,
        nargs="+",
        metavar="S",
        help="random inputs, and decisions imposed on each policy so that the whole model's multiply-adds are divided by this; "
        "the policy runs as ever and is overruled",
    )
    group.add_argument(
        "--spread",
        type=float,
        metavar="R",
        help=f"relative standard deviation of what instances keep at --speedups (default: {SPREAD})",
    )
    group.add_argument("--compile", action="store_true", help="also the host's dense forward with SDPA under torch.compile")
    group.add_argument(
        "--rivals",
        action="store_true",
        help="also other executions at each of --speedups: masks only, padding to the longest, fixed counts, merging",
    )
    group.add_argument(
        "--profile",
        action="store_true",
        help="also tell where the time of packed passes goes: deciding, cutting, projections, attention, MLPs (on a CPU)",
    )
    group.add_argument(
        "--crossover",
        action="store_true",
        help="find, instead, the batch size from which packed execution beats the same decisions in dense shapes, up to the "
        "largest of --batch-sizes, and the layers whose decisions take more time than they save; writes crossover.json",
    )


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    sizes = " ".join(map(str, BATCH_SIZES))
    group.add_argument(
        "--batch-sizes", type=int, nargs="+", default=list(BATCH_SIZES), metavar="N", help=f"pairs of a batch ({sizes})"
    )
    group.add_argument("--split", default="test", help="data of the config: train, val or test (default: %(default)s)")
    group.add_argument(
        "--random-inputs", action="store_true", help="random images and texts of the model's size: no data are read"
    )
    group.add_argument(
        "--text-length",
        type=int,
        metavar="T",
        help="tokens of random texts, begin and end included (default: as tools/cost.py)",
    )
    group.add_argument(
        "--text-lengths",
        type=int,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="random texts of unequal lengths, any between these as likely; the host gets them padded",
    )
    group.add_argument(
        "--answers", type=int, metavar="N", help="N random answers of 3 to 5 tokens to rank, in place of the config's"
    )


def _add_how(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dtype",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="numbers of all contenders: the weights cast, or torch's autocast around each forward (default: %(default)s)",
    )
    group.add_argument(
        "--rounds", type=int, help=f"timed batches of each size (default: {ROUNDS}; with --crossover {FEW_ROUNDS})"
    )
    group.add_argument("--warmup", type=int, default=WARMUP, help="batches before them (default: %(default)s)")
    group.add_argument(
        "--threads", type=int, nargs="+", metavar="N", help="threads of torch, one after the other (default: its own choice)"
    )
    group.add_argument("--seed", type=int, default=0, help="of the draw of pairs, and of random weights (default: 0)")
