"""What each backend of packed attention costs on this machine, alone: random tensors, without the projections around it.

Every round draws new lengths, new heads and new tensors, so that what a backend lays out for them is part of its time, and
runs all backends on them, see :func:`~smarttrim_mm.engine.timing.interleave`.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction
from torch import Tensor

from smarttrim_mm.attention.base import AttentionBackend, ChosenAttention, HeadPlan, Sequences, ranked
from smarttrim_mm.engine.machine import in_words, load, machine
from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.engine.timing import interleave
from smarttrim_mm.registry import ATTENTION_BACKENDS
from smarttrim_mm.utils.checkpoint_io import check_out, write_atomically

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARMUP = 3


@dataclass(frozen=True)
class Case:
    """One self-attention of a batch.

    Attributes:
        q: Queries, [S, H, d], a strided view as a fused projection gives it.
        k: Keys, likewise.
        v: Values, likewise.
        of: Where the instances lie.
        heads: Which heads are on; None: all.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    of: Sequences
    heads: HeadPlan | None

    def attend(self, backend: AttentionBackend) -> int:
        """Runs a backend: the multiply-adds that it executed."""
        return backend(self.q, self.k, self.v, self.of, self.of, self.heads)[1]

    def least(self) -> int:
        """Multiply-adds of the heads that are on, without padding."""
        on = [self.q.shape[1]] * len(self.of.lengths) if self.heads is None else [len(row) for row in self.heads.on]
        return 2 * self.q.shape[2] * sum(h * n * n for h, n in zip(on, self.of.lengths, strict=True))


@dataclass(frozen=True)
class Shape:
    """How random cases are drawn.

    Attributes:
        batch: Instances.
        mean_length: Tokens of an instance.
        spread: Their standard deviation, tokens; an instance has one token at least.
        heads: Heads of the attention.
        width: Width of each.
        heads_on: Share of them that are on, 0-1, in every instance another choice; 1: no plan is given.
    """

    batch: int
    mean_length: float
    spread: float
    heads: int = 12
    width: int = 64
    heads_on: float = 1.0

    def draw(self, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Case:
        """One random case."""
        lengths = self.mean_length + self.spread * torch.randn(self.batch, generator=generator)
        of = Sequences.of(lengths.round().int().clamp(min=1).tolist(), device)
        qkv = torch.randn(sum(of.lengths), 3 * self.heads * self.width, generator=generator).to(device, dtype)
        q, k, v = (x.unflatten(-1, (self.heads, self.width)) for x in qkv.chunk(3, -1))
        heads = None
        if self.heads_on < 1:
            order = torch.rand(self.batch, self.heads, generator=generator).argsort(-1).argsort(-1)
            gate = order < round(self.heads_on * self.heads)
            heads = HeadPlan.of(gate.to(device), gate.tolist())
        return Case(q, k, v, of, heads)


def compare(
    backends: Mapping[str, AttentionBackend],
    cases: Iterator[Case],
    *,
    reference: str,
    warmup: int = WARMUP,
    synchronize: Callable[[], None] = lambda: None,
    on_run: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Times backends on the same cases.

    Args:
        backends: By name.
        cases: A new one for each round, the warm-up's first.
        reference: Name of the backend that the others are compared with.
        warmup: Rounds that are not timed.
        synchronize: Waits until the device is idle.
        on_run: Told of each timed run.

    Returns:
        JSON data: ``rounds``; per backend ``ms`` (median and quartiles), ``speedup`` over the reference, and
        ``executed_over_least``, multiply-adds executed over those of the heads that are on without padding, None where no
        head is on.
    """
    executed, least = dict.fromkeys(backends, 0), dict.fromkeys(backends, 0)

    def after(name: str, case: Case, work: int) -> None:
        executed[name] += work
        least[name] += case.least()
        on_run()

    contenders = {name: partial(Case.attend, backend=backend) for name, backend in backends.items()}
    with torch.inference_mode():
        timings = interleave(contenders, cases, warmup=warmup, synchronize=synchronize, after=after)
    rows = {
        name: {
            "ms": asdict(timings.milliseconds(name)),
            "speedup": asdict(timings.speedup(name, reference)),
            "executed_over_least": executed[name] / least[name] if least[name] else None,
        }
        for name in backends
    }
    return {"rounds": timings.rounds, "reference": reference, "backends": rows}


def table(name: str, result: Mapping[str, Any]) -> str:
    """Times of one kind of cases, as a few lines of text.

    Args:
        name: Heading.
        result: What :func:`compare` returned.
    """
    lines = [f"{name:<40}{'ms':>9}{'middle half':>18}{'x faster':>10}{'middle half':>15}{'executed':>10}"]
    for backend, row in result["backends"].items():
        ms, ratio, work = row["ms"], row["speedup"], row["executed_over_least"]
        half = "" if backend == result["reference"] else f"{ratio['q1']:.2f} - {ratio['q3']:.2f}"
        lines.append(
            f"{backend:<40}{ms['median']:>9.3f}{ms['q1']:>9.3f} -{ms['q3']:>7.3f}{ratio['median']:>10.2f}{half:>15}"
            + (f"{work:>10.2f}" if work is not None else "")
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/benchmark_attention.py``."""
    parser = argparse.ArgumentParser(
        "benchmark_attention.py",
        description="Time every attention backend that can run here on packed sequences of random lengths: new lengths, heads "
        "and tensors each round, backends in rotated order. Executed is what was multiplied over what the heads that are on "
        "need without padding.",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32"], help="one after the other (default: fp32)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="instances (default: %(default)s)")
    parser.add_argument("--mean-length", type=float, default=150, metavar="N", help="tokens of one (default: %(default)s)")
    parser.add_argument("--spread", type=float, default=15, metavar="N", help="their standard deviation (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=12, metavar="H", help="heads (default: %(default)s)")
    parser.add_argument("--width", type=int, default=64, metavar="D", help="width of a head (default: %(default)s)")
    parser.add_argument(
        "--heads-on",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="R",
        help="share of heads that are on, one after the other (1)",
    )
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="which (default: all that can run)")
    parser.add_argument(
        "--options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="NAME.KEY=VALUE",
        help="settings of backends: FlexAttention.compiled=True",
    )
    parser.add_argument("--rounds", type=int, default=30, help="timed cases of each kind (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=WARMUP, help="cases before them (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--out", metavar="FILE", help="write everything to this JSON file")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What ``tools/benchmark_attention.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Returns:
        JSON data: the machine, the load, the command, and one result for each dtype and share of heads.

    Raises:
        ValueError: If a number does not fit, or a backend that was named cannot run.
        KeyError: If a backend is unknown.
    """
    args = parser().parse_args(argv)
    check_out("--out", args.out)
    _check(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    synchronize = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    content: dict[str, Any] = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv] if argv is None else ["benchmark_attention.py", *argv]),
        "arguments": {key: value for key, value in vars(args).items() if key != "out"},
        "threads": torch.get_num_threads(),
        "machine": machine(device),
        "load_average": {"before": load()},
        "results": [],
    }
    for dtype, heads_on in product(args.dtype, args.heads_on):
        backends = _backends(args, device, DTYPES[dtype])
        shape = Shape(args.batch, args.mean_length, args.spread, args.heads, args.width, heads_on)
        generator = torch.Generator().manual_seed(args.seed)
        cases = (shape.draw(DTYPES[dtype], device, generator) for _ in range(args.warmup + args.rounds))
        best = type(ChosenAttention().on(device, DTYPES[dtype])).__name__
        bar = Progress(f"{dtype}, {heads_on:.0%} of the heads", args.rounds * len(backends))
        result = compare(
            backends,
            cases,
            reference=best if best in backends else next(iter(backends)),
            warmup=args.warmup,
            synchronize=synchronize,
            on_run=bar.advance,
        )
        bar.close()
        content["results"].append({"dtype": dtype, "shape": asdict(shape), **result})
        print(table(f"{dtype}, {heads_on:.0%} of {args.heads} heads on", result), flush=True)
    content["load_average"]["after"] = load()
    here = content["machine"]
    print(
        f"{here.get('gpu', here['cpu'])}, {in_words(content['threads'])}, torch {here['torch']}, load {content['load_average']}"
    )
    print(f"{args.batch} instances of {args.mean_length:g} +- {args.spread:g} tokens, heads of width {args.width}")
    if args.out is not None:
        write_atomically(args.out, (json.dumps(content, indent=1) + "\n").encode())
        print(f"written to {args.out}")
    return content


def _check(args: argparse.Namespace) -> None:
    for name in ("rounds", "batch", "mean_length", "heads", "width", "threads"):
        value = getattr(args, name)
        if value is not None and not value >= 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
    for name in ("warmup", "spread"):
        if not getattr(args, name) >= 0:
            raise ValueError(f"--{name} is {getattr(args, name)}; expected at least 0")
    for share in args.heads_on:
        if not 0 <= share <= 1:
            raise ValueError(f"--heads-on is {share}; expected a share of heads, 0 to 1")


def _backends(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, AttentionBackend]:
    """Those that were named, or all that can run, best first; with their settings."""
    options: dict[str, dict[str, Any]] = {}
    for key, value in args.options.items():
        name, dot, setting = key.partition(".")
        if not (dot and setting):
            raise ValueError(f"--options has {key!r}; expected NAME.KEY=VALUE, such as FlexAttention.compiled=True")
        ATTENTION_BACKENDS.get(name)
        if args.backends is not None and name not in args.backends:
            raise ValueError(f"--options has {key!r}, but --backends are {', '.join(args.backends)}; name {name} there too")
        options.setdefault(name, {})[setting] = value
    if args.backends is None:
        kinds = [kind.__name__ for kind in ranked()]
        built = {name: ATTENTION_BACKENDS.build({"type": name, **options.get(name, {})}) for name in kinds}
        return {name: backend for name, backend in built.items() if backend.unavailable(device, dtype) is None}
    return {name: ChosenAttention({"type": name, **options.get(name, {})}).on(device, dtype) for name in args.backends}
