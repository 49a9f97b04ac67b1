"""Turns a public METER file into one of our checkpoints."""

import argparse
import io
import re
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope
from torch import Tensor

from smarttrim_mm.backbones.meter import METER
from smarttrim_mm.backbones.meter_checkpoint import POSITIONS, RANK, convert_meter
from smarttrim_mm.backbones.meter_init import read_meter
from smarttrim_mm.models.conversion import Conversion
from smarttrim_mm.registry import MODELS
from smarttrim_mm.utils.checkpoint_io import write_atomically
from smarttrim_mm.utils.config import read_config

_PATCH = 16


def backbone_config(public: Mapping[str, Tensor]) -> dict[str, Any]:
    """Config of a METER of the paper's sizes, with the head, the answers, the images of an answer and their size of a file.

    Args:
        public: The file's state dict.

    Raises:
        ValueError: If it has no head of a task, or several.
    """
    heads = [match[1] for key in public if (match := re.fullmatch(r"(\w+_classifier)\.3\.weight", key))]
    if not heads and f"{RANK}.weight" in public:
        heads = [RANK]
    if len(heads) != 1:
        raise ValueError(
            f"heads of a task in the file: {', '.join(heads) or 'none'}; expected one. A pre-trained file needs no conversion: "
            "train from it with model.backbone.init_from.meter=FILE. For sizes other than the paper's give --config"
        )
    head = heads[0]
    grid = isqrt(max(len(public.get(POSITIONS, ())) - 1, 1))
    config: dict[str, Any] = {"type": "METER", "num_classes": None, "head_name": head, "vision": {"image_size": grid * _PATCH}}
    if head != RANK:
        first = public.get(f"{head}.0.weight")  # [2 D, images 2 D]; what is wrong with it is told when it is converted
        images = first.shape[1] // first.shape[0] if isinstance(first, Tensor) and first.dim() == 2 else 1
        config |= {"num_classes": len(public[f"{head}.3.weight"]), "images_per_text": images}
    return config


def convert(public: Mapping[str, Tensor], config: Mapping[str, Any], image_size: int | None = None) -> Conversion:
    """Converts a state dict for the METER of a config; the model is built without memory for its weights.

    Args:
        public: Of a public METER file.
        config: Config of the backbone.
        image_size: Replaces that of the config, pixels.

    Raises:
        TypeError: If the backbone is no METER.
        ValueError: If the file does not fit, or the size is impossible.
    """
    settings = dict(config)
    if image_size is not None:
        settings["vision"] = {**(settings.get("vision") or {}), "image_size": image_size}
    with torch.device("meta"):
        backbone = MODELS.build(settings)
    if not isinstance(backbone, METER):
        raise TypeError(f"the config's backbone is a {type(backbone).__name__}; public METER files need a METER")
    return convert_meter(public, backbone.state_dict(), head_name=backbone.head_name)


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/convert_checkpoint.py``."""
    parser = argparse.ArgumentParser(
        "convert_checkpoint.py",
        description="Turn a fine-tuned checkpoint of METER's authors (github.com/zdou0830/METER, .ckpt) into one that "
        "tools/test.py and load_from take. Nothing is downloaded, and no code in the file runs. Pre-trained files, without the "
        "head of a task, need no conversion: train from them with model.backbone.init_from.meter=FILE.",
    )
    parser.add_argument("source", metavar="SRC", help="the public file")
    parser.add_argument("target", metavar="DST", help="the new checkpoint (.pth)")
    parser.add_argument(
        "--config",
        help="config file that the checkpoint will be used with (default: the paper's sizes, with the head, the answers, the "
        "images of an answer and their size of the file)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="side of the images in pixels: the position table is resized to it (default: as in the config or the file)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite DST")
    return parser


def main(argv: Sequence[str] | None = None) -> Conversion:
    """What ``tools/convert_checkpoint.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Returns:
        What became of every key.

    Raises:
        FileExistsError: If the target exists and ``--force`` is not given.
        FileNotFoundError: If the file or the config is missing.
        TypeError: If the config's backbone is no METER.
        ValueError: If the file is damaged, wants to run code, or does not fit.
    """
    args = parser().parse_args(argv)
    if Path(args.target).exists() and not args.force:
        raise FileExistsError(f"{args.target} exists; name another file, or add --force to overwrite it")
    public = read_meter(args.source)
    if args.config is not None:
        config = read_config(args.config).model.backbone
    else:
        init_default_scope("smarttrim_mm")
        config = backbone_config(public)
    found = convert(public, config, args.image_size)
    content = io.BytesIO()
    weights = {f"backbone.{key}": value for key, value in found.weights.items()}
    torch.save({"meta": {"converted_from": Path(args.source).name}, "state_dict": weights}, content)
    write_atomically(args.target, content.getvalue())
    print(f"{found.table()}\nwritten to {args.target}")
    return found
