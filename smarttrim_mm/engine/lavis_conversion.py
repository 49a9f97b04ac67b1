"""Turns a public checkpoint of a LAVIS model into one of ours, and ours into one that LAVIS loads."""

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmengine.registry import init_default_scope
from torch import Tensor

from smarttrim_mm.backbones.lavis import LavisBackbone
from smarttrim_mm.backbones.lavis_checkpoint import PREFIX, lacking, plain_weights
from smarttrim_mm.registry import MODELS
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file, write_atomically
from smarttrim_mm.utils.config import read_config


def import_checkpoint(source: str, config: str) -> dict[str, Tensor]:
    """The state dict, in our layout, of a public fine-tuned checkpoint.

    Args:
        source: The public file.
        config: The config that it will be used with.

    Raises:
        FileNotFoundError: If the file or the config is missing.
        TypeError: If the config's backbone is no LAVIS model.
        ValueError: If the file is damaged, wants to run code, or does not fit; or if it lacks a part, as a pre-training does.
    """
    settings = read_config(config).model.backbone
    init_default_scope("smarttrim_mm")
    backbone = MODELS.build(settings)
    if not isinstance(backbone, LavisBackbone):
        raise TypeError(f"the config's backbone is a {type(backbone).__name__}; expected a LavisBackbone")
    found = backbone.load(source)
    new = lacking(found)
    if new:
        raise ValueError(
            f"{source} has nothing for {len(new)} weights of the config's model ({', '.join(sorted(new)[:3])} ...). A file of "
            f"another task or of a pre-training needs no conversion: train from it with model.backbone.checkpoint={source}"
        )
    print(found.table())
    return {f"backbone.{key}": value for key, value in backbone.state_dict().items()}


def export_checkpoint(source: str) -> dict[str, Tensor]:
    """The LAVIS model in one of our checkpoints, under LAVIS's names.

    Args:
        source: One of our checkpoints.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged, wants to run code, or holds no LAVIS model.
    """
    content = load_checkpoint_file(source, mmap=True)
    return plain_weights(content.get("state_dict", content))


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/convert_lavis.py``."""
    parser = argparse.ArgumentParser(
        "convert_lavis.py",
        description="Turn public checkpoints of LAVIS's models into ours, and ours into LAVIS's. Nothing is downloaded, and no "
        "code in a file runs. Pre-trained files are not converted: train from them with model.backbone.checkpoint=FILE.",
    )
    directions = parser.add_subparsers(dest="direction", required=True)
    ours = directions.add_parser("import", help="a public fine-tuned file to one that tools/test.py and load_from take")
    ours.add_argument("config", help="config file that it will be used with")
    theirs = directions.add_parser("export", help=f"ours to LAVIS's: what lies below {PREFIX}, without the trimmers")
    for direction in (ours, theirs):
        direction.add_argument("source", metavar="SRC", help="the file")
        direction.add_argument("target", metavar="DST", help="the new file")
        direction.add_argument("--force", action="store_true", help="overwrite DST")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """What ``tools/convert_lavis.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Raises:
        FileExistsError: If the target exists and ``--force`` is not given.
        FileNotFoundError: If a file is missing.
        TypeError: If the config's backbone is no LAVIS model.
        ValueError: If a file is damaged, wants to run code, or does not fit.
    """
    args = parser().parse_args(argv)
    if Path(args.target).exists() and not args.force:
        raise FileExistsError(f"{args.target} exists; name another file, or add --force to overwrite it")
    content: Mapping[str, object]
    if args.direction == "import":
        weights = import_checkpoint(args.source, args.config)
        content = {"meta": {"converted_from": Path(args.source).name}, "state_dict": weights}
    else:
        weights = export_checkpoint(args.source)
        content = {"model": {key: value.clone() for key, value in weights.items()}}
    data = io.BytesIO()
    torch.save(content, data)
    write_atomically(args.target, data.getvalue())
    print(f"{len(weights)} tensors written to {args.target}")
