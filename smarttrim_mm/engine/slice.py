"""What ``tools/slice.py`` does: takes away for good what a search (UPop) found least important, and saves what is left."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmengine.config import DictAction
from torch import Tensor

from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.models.slicing import PREFIX, slice_backbone
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.upop import UPop
from smarttrim_mm.utils.checkpoint_io import check_out, load_checkpoint_file, write_atomically

_MILLION = 1e6
_RUN_STATE = ("iter", "epoch")  # without them a file is not taken for a checkpoint to resume from


@dataclass(frozen=True)
class Sliced:
    """What slicing did.

    Attributes:
        parameters: Of the backbone, before.
        parameters_left: After.
        multiply_adds: Of the whole model, mean per sample of the training data that the search saw, before.
        multiply_adds_left: After.
    """

    parameters: int
    parameters_left: int
    multiply_adds: float
    multiply_adds_left: float

    @property
    def speedup(self) -> float:
        return self.multiply_adds / self.multiply_adds_left


def slice_model(model: TrimmedVLM) -> tuple[dict[str, Tensor], Sliced]:
    """Slices the backbone of a model by what its policy found, in place.

    Args:
        model: The model.

    Returns:
        What is left of each site, bool [H] or [F], and the sizes.

    Raises:
        ValueError: If the model's policy is not UPop, or its search is not over.
    """
    policy = model.policy
    if not isinstance(policy, UPop):
        raise ValueError(
            f"the policy of the model is {type(policy).__name__}, which does not say what to slice; expected UPop. Give the "
            "config and the checkpoint of a search, which was not sliced yet"
        )
    plan, before = policy.plan(), _parameters(model)
    dense = float(policy.dense)
    left = dense - float(policy.planned_saving())
    slice_backbone(model.backbone, plan)
    return plan, Sliced(before, _parameters(model), dense, left)


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/slice.py``."""
    parser = argparse.ArgumentParser(
        "slice.py",
        description="Take away for good the heads and FFN units that a search (policy UPop) found least important, and write "
        "a smaller checkpoint. tools/test.py, tools/benchmark.py and the others take it with the same config.",
    )
    parser.add_argument("config", help="config file of the search")
    parser.add_argument("checkpoint", help="checkpoint of its end")
    parser.add_argument("--out", required=True, metavar="FILE", help="the sliced checkpoint (.pth)")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="change settings of the config: a.b=1"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> Sliced:
    """What ``tools/slice.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Returns:
        The sizes before and after.

    Raises:
        ValueError: If the checkpoint is unreadable, does not fit the config, or is not that of a finished search.
        FileNotFoundError: If the config or the checkpoint is missing.
    """
    args = parser().parse_args(argv)
    check_out("--out", args.out)
    model = build_model(read_config(args.config, args.cfg_options), args.checkpoint, "cpu")
    plan, found = slice_model(model)
    save_sliced(args.out, model, plan, args.checkpoint, {"config": args.config, "source": args.checkpoint, **asdict(found)})
    sizes = [Path(path).stat().st_size / _MILLION for path in (args.checkpoint, args.out)]
    print(f"{sizes_table(found)}\n{_left_table(plan)}\n{sizes[1]:.2f} MB written to {args.out} (from {sizes[0]:.2f} MB)")
    return found


def save_sliced(path: str, model: TrimmedVLM, plan: Mapping[str, Tensor], source: str, note: Mapping[str, object]) -> None:
    """Writes the weights of a sliced backbone with its plan.

    Args:
        path: The new file.
        model: The model, whose backbone is sliced.
        plan: What is left of each site.
        source: The checkpoint it was loaded from, whose description goes along.
        note: What is remembered of the slicing.
    """
    meta = load_checkpoint_file(source, mmap=True).get("meta") or {}
    kept = {key: value for key, value in meta.items() if key not in _RUN_STATE}
    weights = {f"backbone.{key}": value.detach().cpu().clone() for key, value in model.backbone.state_dict().items()}
    weights |= {f"{PREFIX}{name}": keep.cpu().clone() for name, keep in plan.items()}
    content = io.BytesIO()
    torch.save({"meta": {**kept, "sliced": dict(note)}, "state_dict": weights}, content)
    write_atomically(path, content.getvalue())


def sizes_table(found: Sliced) -> str:
    """Before and after, as a few lines of text."""
    rows = [
        ("parameters, M", found.parameters / _MILLION, found.parameters_left / _MILLION),
        ("multiply-adds, M per sample", found.multiply_adds / _MILLION, found.multiply_adds_left / _MILLION),
    ]
    lines = [f"{'':<29}{'before':>12}{'after':>12}{'ratio':>9}"]
    return "\n".join(lines + [f"{name:<29}{one:>12.3f}{two:>12.3f}{one / two:>8.3f}x" for name, one, two in rows])


def _left_table(plan: Mapping[str, Tensor]) -> str:
    width = max(map(len, plan))
    return "\n".join(f"{name:<{width}}  {int(keep.sum()):>5} of {len(keep)} left" for name, keep in plan.items())


def _parameters(model: TrimmedVLM) -> int:
    return sum(parameter.numel() for parameter in model.backbone.parameters())
