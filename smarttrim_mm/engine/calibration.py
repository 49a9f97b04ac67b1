"""Sets a trained policy to a wanted speed-up: bisects its one knob on held-out data.

The speed-up is that of the whole model, mean dense over mean decided multiply-adds per sample, the policy's own
compute included.
"""

import argparse
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction

from smarttrim_mm.engine.building import build_loader, build_model, model_batches, read_config
from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.losses.budget import UnreachableSpeedup
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM, is_right
from smarttrim_mm.policies.base import Knob
from smarttrim_mm.utils.checkpoint_io import check_out, load_checkpoint_file, write_atomically

MAX_STEPS = 16
_JUMP = 0.05  # overshoot that deserves a word
_MILLION = 1e6


@dataclass(frozen=True)
class Measurement:
    """One pass over the data.

    Attributes:
        knob: The policy's knob in this pass.
        accuracy: Share of right answers, or of right next tokens where answers are texts, 0-1.
        multiply_adds: Decided, mean per sample.
        dense_multiply_adds: Of the untrimmed model, mean per sample.
        least_multiply_adds: If the policy kept as few tokens as it can and no head that it decides on, mean per sample.
        samples: What is answered at once: image-question pairs, sentences with their images, images that texts are ranked for.
    """

    knob: float
    accuracy: float
    multiply_adds: float
    dense_multiply_adds: float
    least_multiply_adds: float
    samples: int

    @property
    def speedup(self) -> float:
        """Dense over decided multiply-adds."""
        return self.dense_multiply_adds / self.multiply_adds

    @property
    def most_speedup(self) -> float:
        """What no setting of the policy can pass."""
        return self.dense_multiply_adds / self.least_multiply_adds


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        target: The wanted speed-up.
        before: At the knob as it was.
        after: At the knob as it is now.
        passes: All passes, in their order.
    """

    target: float
    before: Measurement
    after: Measurement
    passes: tuple[Measurement, ...]


def calibrate(
    model: TrimmedVLM,
    batches: Callable[[], Iterable[VLMInputs]],
    speedup: float,
    *,
    margin: float = 0.01,
    tolerance: float = 0.005,
    max_steps: int = MAX_STEPS,
    on_pass: Callable[[Measurement], None] = lambda _: None,
) -> Calibration:
    """Moves the knob of the model's policy to the least cut that reaches a speed-up on the data.

    Args:
        model: The model, in evaluation mode; its knob is changed.
        batches: Gives the held-out data, each time anew.
        speedup: Wanted ratio of dense to decided multiply-adds, at least 1.
        margin: Aim this share above it, as other data will differ a little.
        tolerance: Stop within this share above the aim.
        max_steps: Most bisections.
        on_pass: Told of each pass.

    Returns:
        What was found; its ratio is ``speedup`` or more.

    Raises:
        ValueError: If the policy has no knob, the speed-up is below 1, a share is negative, or there are no batches.
        UnreachableSpeedup: If the speed-up is beyond what the knob reaches.
    """
    knob = check_request(model, speedup, margin, tolerance)
    passes: list[Measurement] = []

    def measured(value: float) -> Measurement:
        _set_knob(model, knob, value)
        passes.append(measure(model, batches()))
        on_pass(passes[-1])
        return passes[-1]

    aim = speedup * (1 + margin)
    before = cheap = measured(model.policy.get_knob())
    dear = knob.low
    if before.speedup < aim:
        dear, cheap = before.knob, measured(knob.high)
        if cheap.speedup < speedup:
            _set_knob(model, knob, before.knob)
            raise UnreachableSpeedup(_unreachable(speedup, knob, cheap))
        aim = min(aim, cheap.speedup)
    seen = {cheap.knob: cheap}

    def ratio(value: float) -> float:
        seen[value] = measured(value)
        return seen[value].speedup

    chosen = bisect(ratio, dear, cheap.knob, cheap.speedup, target=aim, tolerance=tolerance, max_steps=max_steps)
    _set_knob(model, knob, chosen)
    return Calibration(speedup, before, seen[chosen], tuple(passes))


def bisect(
    ratio: Callable[[float], float],
    low: float,
    high: float,
    ratio_at_high: float,
    *,
    target: float,
    tolerance: float,
    max_steps: int,
) -> float:
    """Finds where a ratio that grows from ``low`` to ``high`` reaches a target.

    Args:
        ratio: The ratio at a value; it may be a staircase.
        low: A value where the ratio is taken to be below the target.
        high: A value where it is known to be at least the target; it may be below ``low``.
        ratio_at_high: The ratio there.
        target: What to reach.
        tolerance: Stop once the ratio is within this share above the target.
        max_steps: Most evaluations.

    Returns:
        The value nearest to ``low`` whose evaluated ratio is at least the target.
    """
    for _ in range(max_steps):
        if ratio_at_high <= target * (1 + tolerance):
            break
        middle = (low + high) / 2
        reached = ratio(middle)
        if reached >= target:
            high, ratio_at_high = middle, reached
        else:
            low = middle
    return high


@torch.inference_mode()
def measure(model: TrimmedVLM, batches: Iterable[VLMInputs]) -> Measurement:
    """Accuracy and compute of a model as it is, packed.

    Args:
        model: The model, in evaluation mode.
        batches: Data with targets.

    Raises:
        ValueError: If there are no batches, or they have no targets.
    """
    right = judged = samples = 0
    totals = torch.zeros(3, dtype=torch.float64)
    for inputs in batches:
        if inputs.targets is None:
            raise ValueError("inputs.targets is None; calibration needs data with answers, to show what the trimming costs")
        logits, record = model.trace(inputs)
        found = is_right(logits, inputs.targets)  # of texts, a token each
        right, judged, samples = right + int(found.sum()), judged + len(found), samples + record.samples
        costs = (record.multiply_adds(), record.dense_multiply_adds(), record.least_multiply_adds())
        totals += torch.stack(costs).double().sum(1).cpu()
    if samples == 0:
        raise ValueError("there are no batches to measure; check the config's val_dataloader and --max-batches")
    decided, dense, least = (totals / samples).tolist()
    knob = model.policy.get_knob() if model.policy.knob is not None else float("nan")
    return Measurement(knob, right / judged, decided, dense, least, samples)


def check_request(model: TrimmedVLM, speedup: float, margin: float, tolerance: float) -> Knob:
    """Refuses what cannot be calibrated, before any data is read.

    Returns:
        The policy's knob.

    Raises:
        ValueError: If the policy has no knob, the speed-up is below 1, or a share is negative.
    """
    if model.policy.knob is None:
        raise ValueError(
            f"policy {type(model.policy).__name__} has no knob to calibrate: its compute is fixed. Give the config of a policy "
            "that trims, such as SmartTrim or Random"
        )
    if not speedup >= 1:
        raise ValueError(f"speedup is {speedup}; expected a number >= 1, such as 2.0 for half of the dense multiply-adds")
    for name, value in (("margin", margin), ("tolerance", tolerance)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; expected a share in [0, 1), such as 0.01")
    return model.policy.knob


def save_calibrated(path: str, model: TrimmedVLM, source: str, note: dict[str, Any]) -> None:
    """Writes the model's weights and knob as a checkpoint of plain data, without the state of a training.

    Args:
        path: The new file.
        model: The model.
        source: The checkpoint it was loaded from, whose description goes along.
        note: What is remembered of the calibration.
    """
    meta = load_checkpoint_file(source, mmap=True).get("meta", {})
    # without its iteration it is not taken for a checkpoint to resume from
    kept = {key: value for key, value in meta.items() if key not in ("iter", "epoch")}
    weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    content = io.BytesIO()
    torch.save({"meta": {**kept, "calibration": note}, "state_dict": weights}, content)
    write_atomically(path, content.getvalue())


def calibrated_speedup(meta: Mapping[str, Any]) -> float | None:
    """The speed-up that a checkpoint was calibrated to; None: it was not.

    Args:
        meta: The checkpoint's description, as :func:`save_calibrated` writes it.
    """
    note = meta.get("calibration")
    return None if note is None else float(note["target"])


def calibration_table(found: Calibration, name: str) -> str:
    """Before and after, as a few lines of text.

    Args:
        found: The calibration.
        name: Of the knob.
    """
    lines = [f"{'':<8}{name:>24}{'accuracy':>11}{'M multiply-adds':>18}{'dense / decided':>18}"]
    for row, at in (("before", found.before), ("after", found.after)):
        lines.append(f"{row:<8}{at.knob:>24.4f}{at.accuracy:>11.4f}{at.multiply_adds / _MILLION:>18.3f}{at.speedup:>17.3f}x")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/calibrate.py``."""
    parser = argparse.ArgumentParser(
        "calibrate.py",
        description="Set a trained policy to a wanted speed-up, on the config's val data (held-out training images), and save "
        "the checkpoint with the new setting.",
    )
    parser.add_argument("config", help="config file of a policy that trims")
    parser.add_argument("checkpoint", help="file written by train.py")
    parser.add_argument("--out", required=True, metavar="FILE", help="the new checkpoint")
    parser.add_argument(
        "--speedup",
        type=float,
        default=2.0,
        help="dense over trimmed multiply-adds of the whole model, at least 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.01,
        help="aim this share above it, as other data differ a little (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.005, help="stop within this share above the aim (default: %(default)s)"
    )
    parser.add_argument("--max-batches", type=int, metavar="N", help="use the first N batches only (default: all)")
    parser.add_argument("--work-dir", metavar="DIR", help="write every pass to DIR/calibration.json")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="change settings of the config: a.b=1"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> Calibration:
    """What ``tools/calibrate.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Returns:
        What was found.

    Raises:
        ValueError: If the policy, the speed-up, the data or the checkpoint do not fit.
        FileNotFoundError: If the config or the checkpoint is missing.
    """
    args = parser().parse_args(argv)
    check_out("--out", args.out)
    if args.max_batches is not None and args.max_batches < 1:
        raise ValueError(f"--max-batches is {args.max_batches}; expected at least 1, or leave it out for all")
    cfg = read_config(args.config, args.cfg_options)
    model = build_model(cfg, args.checkpoint, for_counts=True)
    knob = check_request(model, args.speedup, args.margin, args.tolerance)
    loader = build_loader(cfg, "val", model)
    per_pass = len(loader) if args.max_batches is None else min(len(loader), args.max_batches)
    bar = Progress(f"calibrating to {args.speedup:g}x", per_pass * (MAX_STEPS + 2), at_most=True)
    note = ""

    def batches() -> Iterable[VLMInputs]:
        for inputs in model_batches(model, loader, args.max_batches):
            yield inputs
            bar.advance(note)

    def on_pass(at: Measurement) -> None:
        nonlocal note
        note = f"{at.speedup:.3f}x at {knob.name} {at.knob:.4f}"

    try:
        found = calibrate(
            model, batches, args.speedup, margin=args.margin, tolerance=args.tolerance, max_steps=MAX_STEPS, on_pass=on_pass
        )
    finally:
        bar.close(note)
    record = {
        "config": args.config,
        "source": args.checkpoint,
        "knob": knob.name,
        "target": found.target,
        "samples": found.after.samples,
        "before": summary(found.before),
        "after": summary(found.after),
    }
    save_calibrated(args.out, model, args.checkpoint, record)
    if args.work_dir is not None:
        content = {**record, "passes": [summary(at) for at in found.passes]}
        write_atomically(Path(args.work_dir) / "calibration.json", (json.dumps(content, indent=1) + "\n").encode())
    print(f"{calibration_table(found, knob.name)}\non {found.after.samples} samples of the val data; written to {args.out}")
    if found.after.speedup > found.target * (1 + args.margin) * (1 + _JUMP):
        print(f"The ratio jumps here: no {knob.name} that was tried lies nearer to {found.target:g}x.")
    return found


def _set_knob(model: TrimmedVLM, knob: Knob, value: float) -> None:
    low, high = sorted((knob.low, knob.high))
    model.policy.set_knob(min(max(value, low), high))  # an end of the range, read back from fp32, can lie just outside


def _unreachable(speedup: float, knob: Knob, at: Measurement) -> str:
    return (
        f"speedup is {speedup}, but on this data the policy reaches at most {at.speedup:.2f} (with its {knob.name} at "
        f"{at.knob:g}); with protected tokens only and none of the heads it decides on, it would be {at.most_speedup:.2f}. "
        "Ask for less, train the policy for a higher speed-up, or let it trim more layers and streams"
    )


def summary(at: Measurement) -> dict[str, float]:
    """A pass as plain numbers, with its speed-up."""
    return {**asdict(at), "speedup": at.speedup}
