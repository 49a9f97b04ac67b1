"""Honest wall-clock benchmark of a trimmed model against two baselines: its host's own dense forward, and the same with
scaled_dot_product_attention.

All run in one process on new batches of unshared image-question pairs, see
:func:`~smarttrim_mm.engine.timing.interleave`. The ratios are the result; times in ms depend on the machine and its load.
Without data and training, images, texts and weights are random, and what is kept can be imposed
(:mod:`~smarttrim_mm.engine.imposing`).
"""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction
from mmengine.dataset import BaseDataset
from torch import Tensor
from torch.utils.data import DataLoader

from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.engine.cost_sheet import check_length
from smarttrim_mm.engine.imposing import SPREAD, impose, random_answers, random_rounds
from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.engine.timing import interleave
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.policies.dense import Dense
from smarttrim_mm.utils.checkpoint_io import check_out, write_atomically

HOST, HOST_SDPA, PACKED = "host dense", "host dense, SDPA", "packed dense"
WARMUP = 3
_MILLION = 1e6


def benchmark(
    model: TrimmedVLM,
    batches: Iterator[VLMInputs],
    *,
    warmup: int = WARMUP,
    policies: Mapping[str, Policy] | None = None,
    on_run: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Times the host's dense forwards, the packed dense execution, and the packed execution under policies.

    Args:
        model: The model, in evaluation mode.
        batches: Unshared pairs, a new batch for each round, the warm-up's first.
        warmup: Rounds that are not timed.
        policies: By name; None: the model's own, unless it keeps everything.
        on_run: Told of each timed run.

    Returns:
        JSON data: ``rounds``; ``sdpa_baseline``, the name of the host's dense forward with scaled_dot_product_attention, None
        if there is none; for each contender its ``ms_per_batch``, ``speedup`` over the host, ``speedup_over_sdpa`` over that
        baseline (medians and quartiles; the latter None without one), M multiply-adds per pair, ``decided`` and ``executed``,
        and ``dense_over_decided``; ``dense_multiply_adds``; the greatest difference between the logits of the host's and the
        packed dense forwards.
    """
    contenders = _contenders(model, policies)
    sdpa = _sdpa_baseline(model)
    totals = {name: [0.0, 0.0] for name in contenders if name not in (HOST, HOST_SDPA)}
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
            both = torch.stack([dense_logits[HOST], dense_logits[PACKED]])
            both = both[:, ~both.isneginf().any(0)]  # an answer that is no candidate has minus infinity
            differences.append((both[0] - both[1]).abs().max())
            dense_logits.clear()
        if record is not None:
            totals[name][0] += float(record.multiply_adds().double().sum())
            totals[name][1] += record.executed_multiply_adds() * len(logits)
        if record is not None and name == PACKED:
            pairs += len(logits)
            dense += float(record.dense_multiply_adds().double().sum())

    with torch.inference_mode():
        timings = interleave(contenders, batches, warmup=warmup, synchronize=synchronizer(model), after=after)
    rows = {}
    for name in contenders:
        decided, executed = (total / pairs / _MILLION for total in totals.get(name, (dense, float("nan"))))
        rows[name] = {
            "ms_per_batch": asdict(timings.milliseconds(name)),
            "speedup": asdict(timings.speedup(name, HOST)),
            "speedup_over_sdpa": None if sdpa is None else asdict(timings.speedup(name, sdpa)),
            "decided_multiply_adds": decided,
            "executed_multiply_adds": executed if name in totals else None,
            "dense_over_decided": dense / pairs / _MILLION / decided,
        }
    return {
        "rounds": timings.rounds,
        "sdpa_baseline": sdpa,
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
    sdpa = result.get("sdpa_baseline")
    over = [("speedup", "x faster", HOST)]
    if sdpa is not None and sdpa != HOST:
        over.append(("speedup_over_sdpa", "over SDPA", sdpa))
    lines = [
        f"{name:<36}"
        + "".join(f"{title:>10}{'middle half':>16}" for _, title, _ in over)
        + f"{'ms/batch':>10}{'M decided':>11}{'M executed':>12}"
    ]
    for contender, row in result["contenders"].items():
        executed = row["executed_multiply_adds"]
        line = f"{contender:<36}"
        for key, _, baseline in over:
            ratio = row[key]
            half = "" if contender == baseline else f"{ratio['q1']:.2f} - {ratio['q3']:.2f}"
            line += f"{ratio['median']:>10.2f}{half:>16}"
        line += f"{row['ms_per_batch']['median']:>10.1f}{row['decided_multiply_adds']:>11.2f}"
        lines.append(line + (f"{executed:>12.2f}" if executed is not None else ""))
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
        description="Compare the clock of a trimmed model with its host's dense forward, as it is and with torch's "
        "scaled_dot_product_attention: new unshared image-question pairs each round, contenders in rotated order, medians of "
        "the rounds' ratios.",
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="file written by train.py or calibrate.py (default: random weights)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32], metavar="N", help="pairs of a batch (1 32)")
    parser.add_argument("--rounds", type=int, default=60, help="timed batches of each size (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=WARMUP, help="batches before them (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, nargs="+", metavar="N", help="threads of torch, one after the other (default: its own choice)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw of pairs, and of random weights (default: 0)")
    parser.add_argument("--split", default="test", help="data of the config: train, val or test (default: %(default)s)")
    parser.add_argument(
        "--random-inputs", action="store_true", help="random images and texts of the model's size: no data are read"
    )
    parser.add_argument(
        "--speedups",
        type=float,
        nargs="+",
        metavar="S",
        help="random inputs, and decisions imposed so that the whole model's multiply-adds are divided by this; the config's "
        "policy runs as ever and is overruled",
    )
    parser.add_argument(
        "--spread",
        type=float,
        metavar="R",
        help=f"relative standard deviation of what instances keep at --speedups (default: {SPREAD})",
    )
    parser.add_argument(
        "--text-length",
        type=int,
        metavar="T",
        help="tokens of random texts, begin and end included (default: as tools/cost.py)",
    )
    parser.add_argument(
        "--answers", type=int, metavar="N", help="N random answers of 3 to 5 tokens to rank, in place of the config's"
    )
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
    check_out("--out", args.out)
    _check(args)
    torch.manual_seed(args.seed)
    cfg = read_config(args.config, args.cfg_options)
    if args.answers is not None:
        answers = random_answers(args.answers, cfg.get("model", {}).get("backbone", {}), args.seed)
        cfg.model.backbone.merge({"answers": answers})
    model = build_model(cfg, args.checkpoint)
    contest = _on_random(model, args) if args.random_inputs else _on_data(model, build_loader(cfg, args.split, model), args)
    device = next(model.parameters()).device
    content: dict[str, Any] = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv] if argv is None else ["benchmark.py", *argv]),
        "config": args.config,
        "checkpoint": args.checkpoint,
        "policy": type(model.policy).__name__,
        "seed": args.seed,
        "random_inputs": args.random_inputs,
        "text_length": check_length(model.backbone.input_format, args.text_length) if args.random_inputs else None,
        "speedups": args.speedups,
        "spread": args.spread,
        "answers": args.answers,
        "units": "multiply-adds in M per image-question pair, unshared; x faster than the host's dense forward; ms per batch",
        "machine": machine(device),
        "load_average": {"before": load()},
        "results": [],
    }
    for threads in args.threads or [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        for size in args.batch_sizes:
            name = f"batch {size}, {in_words(threads)}"
            batches, policies = contest(size)
            bar = Progress(f"benchmark, {name}", args.rounds * len(_contenders(model, policies)))
            result = benchmark(model, batches, warmup=args.warmup, policies=policies, on_run=bar.advance)
            bar.close()
            content["results"].append({"batch_size": size, "threads": threads, **result})
            print(table(f"{name}, {args.rounds} rounds", result), flush=True)
    content["load_average"]["after"] = load()
    here = content["machine"]
    print(f"{here.get('gpu', here['cpu'])}, torch {here['torch']}, load {content['load_average']}")
    if content["load_average"]["before"][0] > 0.5:
        print("The machine was busy when this began: the spread of the ratios tells how far to trust them.")
    print(_about_sdpa(model))
    if args.speedups:
        print(f"Weights and inputs are random, and what is kept is imposed: {content['policy']} decides live and is overruled.")
    elif args.checkpoint is None:
        print("The weights are random, and so is what a trained policy would keep.")
    if args.out is not None:
        write_atomically(args.out, (json.dumps(content, indent=1) + "\n").encode())
        print(f"written to {args.out}")
    return content


Contest = Callable[[int], tuple[Iterator[VLMInputs], Mapping[str, Policy] | None]]


def _check(args: argparse.Namespace) -> None:
    """Refuses what does not fit, and fills in what one option says of another."""
    for name, value in (
        ("--rounds", args.rounds),
        *(("--threads", n) for n in args.threads or ()),
        *(("--batch-sizes", n) for n in args.batch_sizes),
        *((name, n) for name, n in (("--answers", args.answers),) if n is not None),
        *(("--speedups", n) for n in args.speedups or ()),
    ):
        if not value >= 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    if args.warmup < 0:
        raise ValueError(f"--warmup is {args.warmup}; expected at least 0")
    if args.speedups:
        args.random_inputs = True
        args.spread = SPREAD if args.spread is None else args.spread
    elif args.spread is not None:
        raise ValueError(f"--spread is {args.spread} without --speedups, at which alone what is kept is drawn; give both")
    if args.random_inputs and args.checkpoint is not None:
        raise ValueError(
            f"checkpoint is {args.checkpoint!r}, and the inputs are to be random, which says nothing about trained weights; "
            "leave one of them out"
        )
    if args.text_length is not None and not args.random_inputs:
        raise ValueError(f"--text-length is {args.text_length} without --random-inputs: the config's data have their own texts")
    if args.answers is not None and not args.random_inputs:
        raise ValueError(f"--answers is {args.answers} without --random-inputs: the config's data have their own answers")


def _on_data(model: TrimmedVLM, loader: DataLoader, args: argparse.Namespace) -> Contest:
    """Batches of the config's data, under the model's policy."""
    rounds = args.warmup + args.rounds
    return lambda size: (draw_pairs(model, loader, batch_size=size, rounds=rounds, seed=args.seed), None)


def _on_random(model: TrimmedVLM, args: argparse.Namespace) -> Contest:
    """Random batches, under the policies of the speed-ups, or the model's own."""
    shape, device = model.backbone.input_format, next(model.parameters()).device
    length, rounds = check_length(shape, args.text_length), args.warmup + args.rounds

    def draw(size: int, count: int) -> Iterator[VLMInputs]:
        return random_rounds(shape, text_length=length, batch_size=size, rounds=count, seed=args.seed)

    def contest(size: int) -> tuple[Iterator[VLMInputs], Mapping[str, Policy] | None]:
        batches = (inputs.to(device) for inputs in draw(size, rounds))
        if not args.speedups:
            return batches, None
        timed = range(args.warmup, rounds)
        found = impose(model, next(draw(size, 1)), args.speedups, rounds=timed, spread=args.spread, seed=args.seed)
        return batches, {f"{type(model.policy).__name__} at {speedup:g}x": policy for speedup, policy in found.items()}

    return contest


def _contenders(
    model: TrimmedVLM, policies: Mapping[str, Policy] | None
) -> dict[str, Callable[[VLMInputs], tuple[Tensor, TrimRecord | None]]]:
    if policies is None:
        policies = {} if isinstance(model.policy, Dense) else {type(model.policy).__name__: model.policy}
    found: dict[str, Callable[[VLMInputs], tuple[Tensor, TrimRecord | None]]] = {
        HOST: lambda inputs: (model.host_forward(inputs), None)
    }
    if _sdpa_baseline(model) == HOST_SDPA:
        with_sdpa = model.backbone.with_sdpa()

        def host_with_sdpa(inputs: VLMInputs) -> tuple[Tensor, None]:
            with with_sdpa:
                return model.host_forward(inputs), None

        found[HOST_SDPA] = host_with_sdpa
    for name, policy in {PACKED: model.dense, **policies}.items():
        found[name] = partial(model.trace, policy=policy)
    return found


def _sdpa_baseline(model: TrimmedVLM) -> str | None:
    """Which contender is the host's dense forward with scaled_dot_product_attention."""
    if getattr(model.backbone, "host_uses_sdpa", False):
        return HOST
    return HOST_SDPA if hasattr(model.backbone, "with_sdpa") else None


def _about_sdpa(model: TrimmedVLM) -> str:
    found, kind = _sdpa_baseline(model), type(model.backbone).__name__
    if found == HOST:
        return f"{kind}'s own forward has scaled_dot_product_attention: both baselines are {HOST!r}."
    if found is None:
        return f"{kind} has no with_sdpa(): the only baseline is {HOST!r}, whatever its attention is."
    return f"{HOST!r} has {kind}'s own attention, {HOST_SDPA!r} is the same with scaled_dot_product_attention."


def synchronizer(model: TrimmedVLM) -> Callable[[], None]:
    """What waits until the model's device is idle."""
    device = next(model.parameters()).device
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def load() -> list[float]:
    """The load averages of the machine, over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []
