"""Honest wall-clock benchmark of a trimmed model against its host's own dense forward.

Both run in one process on new batches of unshared image-question pairs, see
:func:`~smarttrim_mm.engine.timing.interleave`. The ratios are the result; times in ms depend on the machine and its load.
"""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction
from mmengine.dataset import BaseDataset
from torch import Tensor
from torch.utils.data import DataLoader

from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.engine.timing import interleave
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.dense import Dense
from smarttrim_mm.utils.checkpoint_io import write_atomically

HOST, PACKED = "host dense", "packed dense"
WARMUP = 3
_MILLION = 1e6


def benchmark(
    model: TrimmedVLM,
    batches: Iterator[VLMInputs],
    *,
    warmup: int = WARMUP,
    on_run: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Times the host's dense forward, the packed dense execution, and the packed execution under the model's policy.

    Args:
        model: The model, in evaluation mode.
        batches: Unshared pairs, a new batch for each round, the warm-up's first.
        warmup: Rounds that are not timed.
        on_run: Told of each timed run.

    Returns:
        JSON data: ``rounds``; for each contender its ``ms_per_batch``, ``speedup`` over the host (medians and quartiles),
        and M multiply-adds per pair, ``decided`` and ``executed``; ``dense_multiply_adds``; the greatest difference between
        the logits of the two dense forwards.
    """
    contenders = _contenders(model)
    totals = {name: [0.0, 0.0] for name in contenders if name != HOST}
    pairs, dense = 0, 0.0
    dense_logits: dict[str, Tensor] = {}
    differences: list[Tensor] = []

    def after(name: str, batch: VLMInputs, result: tuple[Tensor, TrimRecord | None]) -> None:
        nonlocal pairs, dense
        logits, record = result
        on_run()
        if name in (HOST, PACKED):
            dense_logits[name] = logits
        if len(dense_logits) == 2:
            differences.append((dense_logits[HOST] - dense_logits[PACKED]).abs().max())
            dense_logits.clear()
        if record is not None:
            totals[name][0] += float(record.multiply_adds().double().sum())
            totals[name][1] += record.executed_multiply_adds() * len(logits)
        if record is not None and name == PACKED:
            pairs += len(logits)
            dense += float(record.dense_multiply_adds().double().sum())

    with torch.inference_mode():
        timings = interleave(contenders, batches, warmup=warmup, synchronize=_synchronizer(model), after=after)
    rows = {}
    for name in contenders:
        decided, executed = (total / pairs / _MILLION for total in totals.get(name, (dense, float("nan"))))
        rows[name] = {
            "ms_per_batch": asdict(timings.milliseconds(name)),
            "speedup": asdict(timings.speedup(name, HOST)),
            "decided_multiply_adds": decided,
            "executed_multiply_adds": None if name == HOST else executed,
        }
    return {
        "rounds": timings.rounds,
        "pairs": pairs,
        "dense_multiply_adds": dense / pairs / _MILLION,
        "largest_logit_difference_of_dense_forwards": float(torch.stack(differences).max()),
        "contenders": rows,
    }


def draw_pairs(model: TrimmedVLM, loader: DataLoader, *, batch_size: int, rounds: int, seed: int = 0) -> Iterator[VLMInputs]:
    """Draws batches of pairs, each of an image of its own and one of its questions, padded to their longest question.

    Args:
        model: Gives the pre-processor and the device.
        loader: Gives the data set and how its items are put together.
        batch_size: Pairs of a batch.
        rounds: Number of batches.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    dataset: BaseDataset = loader.dataset
    for _ in range(rounds):
        while len(order) < batch_size:
            order += torch.randperm(len(dataset), generator=generator).tolist()
        chosen, order = order[:batch_size], order[batch_size:]
        inputs: VLMInputs = model.data_preprocessor(loader.collate_fn([dataset[i] for i in chosen]), False)["inputs"]
        if inputs.image_index is None:  # one question an image
            yield inputs
            continue
        questions = inputs.image_index.bincount(minlength=batch_size).cpu()
        picks = (torch.rand(batch_size, generator=generator) * questions).long() + questions.cumsum(0) - questions
        yield inputs.select(picks.to(inputs.input_ids.device))


def table(name: str, result: dict[str, Any]) -> str:
    """Ratios and times of one batch size, as a few lines of text.

    Args:
        name: Heading.
        result: What :func:`benchmark` returned.
    """
    lines = [f"{name:<36}{'x faster':>10}{'middle half':>16}{'ms/batch':>10}{'M decided':>11}{'M executed':>12}"]
    for contender, row in result["contenders"].items():
        ratio, executed = row["speedup"], row["executed_multiply_adds"]
        half = "" if contender == HOST else f"{ratio['q1']:.2f} - {ratio['q3']:.2f}"
        lines.append(
            f"{contender:<36}{ratio['median']:>10.2f}{half:>16}{row['ms_per_batch']['median']:>10.1f}"
            f"{row['decided_multiply_adds']:>11.2f}" + (f"{executed:>12.2f}" if executed is not None else "")
        )
    return "\n".join(lines)


def in_words(threads: int) -> str:
    """A number of threads."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def machine(device: torch.device) -> dict[str, Any]:
    """What the times depend on beside the model."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    found = {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device.type,
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/benchmark.py``."""
    parser = argparse.ArgumentParser(
        "benchmark.py",
        description="Compare the clock of a trimmed model with its host's dense forward: new unshared image-question pairs "
        "each round, contenders in rotated order, medians of the rounds' ratios.",
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="file written by train.py or calibrate.py (default: random weights)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32], metavar="N", help="pairs of a batch (1 32)")
    parser.add_argument("--rounds", type=int, default=60, help="timed batches of each size (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, nargs="+", metavar="N", help="threads of torch, one after the other (default: its own choice)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw of pairs, and of random weights (default: 0)")
    parser.add_argument("--split", default="test", help="data of the config: train, val or test (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="write everything to this JSON file")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="change settings of the config: a.b=1"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What ``tools/benchmark.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Returns:
        JSON data: the machine, the load, the command, and one result for each number of threads and batch size.

    Raises:
        ValueError: If a number, the data or the checkpoint does not fit.
        FileNotFoundError: If the config or the checkpoint is missing.
    """
    args = parser().parse_args(argv)
    for name, value in (
        ("--rounds", args.rounds),
        *(("--threads", n) for n in args.threads or ()),
        *(("--batch-sizes", n) for n in args.batch_sizes),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    torch.manual_seed(args.seed)
    cfg = read_config(args.config, args.cfg_options)
    model = build_model(cfg, args.checkpoint)
    loader = build_loader(cfg, args.split, model)
    device = next(model.parameters()).device
    content: dict[str, Any] = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv] if argv is None else ["benchmark.py", *argv]),
        "config": args.config,
        "checkpoint": args.checkpoint,
        "policy": type(model.policy).__name__,
        "seed": args.seed,
        "units": "multiply-adds in M per image-question pair, unshared; x faster than the host's dense forward; ms per batch",
        "machine": machine(device),
        "load_average": {"before": _load()},
        "results": [],
    }
    for threads in args.threads or [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        for size in args.batch_sizes:
            name = f"batch {size}, {in_words(threads)}"
            bar = Progress(f"benchmark, {name}", args.rounds * len(_contenders(model)))
            batches = draw_pairs(model, loader, batch_size=size, rounds=WARMUP + args.rounds, seed=args.seed)
            result = benchmark(model, batches, on_run=bar.advance)
            bar.close()
            content["results"].append({"batch_size": size, "threads": threads, **result})
            print(table(f"{name}, {args.rounds} rounds", result), flush=True)
    content["load_average"]["after"] = _load()
    here = content["machine"]
    print(f"{here.get('gpu', here['cpu'])}, torch {here['torch']}, load {content['load_average']}")
    if content["load_average"]["before"][0] > 0.5:
        print("The machine was busy when this began: the spread of the ratios tells how far to trust them.")
    if args.checkpoint is None:
        print("The weights are random, and so is what a trained policy would keep.")
    if args.out is not None:
        write_atomically(args.out, (json.dumps(content, indent=1) + "\n").encode())
        print(f"written to {args.out}")
    return content


def _contenders(model: TrimmedVLM) -> dict[str, Callable[[VLMInputs], tuple[Tensor, TrimRecord | None]]]:
    found: dict[str, Callable[[VLMInputs], tuple[Tensor, TrimRecord | None]]] = {
        HOST: lambda inputs: (model.host_forward(inputs), None),
        PACKED: lambda inputs: model.trace(inputs, policy=model.dense),
    }
    if not isinstance(model.policy, Dense):
        found[type(model.policy).__name__] = model.trace
    return found


def _synchronizer(model: TrimmedVLM) -> Callable[[], None]:
    device = next(model.parameters()).device
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def _load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []
