"""Honest wall-clock benchmark of a trimmed model, what ``tools/benchmark.py`` does.

Without data and training, images, texts and weights are random, and what is kept can be imposed
(:mod:`~smarttrim_mm.engine.imposing`).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from smarttrim_mm.engine.benchmark_options import check_options, check_profile, parser, writes_folder
from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.engine.clock_tables import markdown, table
from smarttrim_mm.engine.clocks import compare_clocks
from smarttrim_mm.engine.contenders import (
    COMPILED,
    DENSE_HOSTS,
    GRAPHED,
    Contender,
    about_sdpa,
    compiled_contender,
    dense_contenders,
    graphed_contender,
    in_precision,
)
from smarttrim_mm.engine.contest import Contest, RandomBatches, on_data, on_random
from smarttrim_mm.engine.crossover import find_crossover
from smarttrim_mm.engine.imposing import random_answers
from smarttrim_mm.engine.machine import in_words, load, machine, versions
from smarttrim_mm.engine.named_policies import named_policies
from smarttrim_mm.engine.part_times import PartTimes, parts_table
from smarttrim_mm.engine.precision import PRECISIONS, Precision
from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.utils.checkpoint_io import write_atomically
from smarttrim_mm.visualization.clock_ratios import draw_clocks
from smarttrim_mm.visualization.figures import save


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What ``tools/benchmark.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Returns:
        JSON data: the machine, the load, the command, and one result for each number of threads and batch size; with
        ``--crossover``, what :func:`~smarttrim_mm.engine.crossover.find_crossover` found in their place.

    Raises:
        ValueError: If a number, the data or the checkpoint does not fit.
        KeyError: If a policy is unknown.
        FileNotFoundError: If the config or the checkpoint is missing.
        RuntimeError: If ``--compile`` cannot be done here.
    """
    args = parser().parse_args(argv)
    check_options(args)
    torch.manual_seed(args.seed)
    cfg, precision = read_config(args.config, args.cfg_options), PRECISIONS[args.dtype]
    if args.answers is not None:
        answers = random_answers(args.answers, cfg.get("model", {}).get("backbone", {}), args.seed)
        cfg.model.backbone.merge({"answers": answers})
    model = build_model(cfg, args.checkpoint)
    check_profile(args, next(model.parameters()).device)
    own = [type(model.policy).__name__] if args.speedups else None  # a dense one too, to say that it reaches nothing
    policies = named_policies(model, args.policies or own, args.checkpoint)
    precision.cast(model)
    for policy in policies.values():
        precision.cast(policy)
    command = shlex.join([Path(sys.executable).name, *sys.argv] if argv is None else ["benchmark.py", *argv])
    content = {"command": command, **_about(args, model, policies)}
    if args.crossover:
        if args.threads:
            torch.set_num_threads(*args.threads)
        found = find_crossover(cfg, model, RandomBatches.of(model, args, precision), args)
        content["crossover"] = {"threads": torch.get_num_threads(), **found}
    else:
        for result in _results(args, cfg, model, policies, precision):
            content["results"].append(result)
            _write_json(args, content)  # what was measured stays, whatever happens to the rest
    content["load_average"]["after"] = load()
    here = content["machine"]
    print(f"{here.get('gpu', here['cpu'])}, torch {here['torch']}, {args.dtype}, load {content['load_average']}")
    if content["load_average"]["before"][0] > 0.5:
        print("The machine was busy when this began: the spread of the ratios tells how far to trust them.")
    print(content["baselines"])
    print(content["weights"])
    _write(args, content)
    return content


def _about(args: argparse.Namespace, model: TrimmedVLM, policies: dict[str, Policy]) -> dict[str, Any]:
    """What the results depend on."""
    lengths = RandomBatches.of(model, args, PRECISIONS[args.dtype]).lengths if args.random_inputs else None
    return {
        "config": args.config,
        "checkpoint": args.checkpoint,
        "model": f"{type(model.backbone).__name__}, {Path(args.config).stem}",
        "policy": type(model.policy).__name__,
        "policies": list(policies),
        "dtype": args.dtype,
        "seed": args.seed,
        "random_inputs": args.random_inputs,
        "text_length": lengths[1] if lengths else None,
        "text_lengths": list(lengths) if lengths else None,
        "speedups": args.speedups,
        "spread": args.spread,
        "answers": args.answers,
        "units": "multiply-adds in M per image-question pair, unshared; x faster than the host's dense forward; ms per batch; "
        "MiB of tensors beyond weights and batch",
        "baselines": about_sdpa(model),
        "weights": _about_weights(args, policies),
        "machine": machine(next(model.parameters()).device),
        "versions": versions(),
        "load_average": {"before": load()},
        "results": [],
    }


def _about_weights(args: argparse.Namespace, policies: dict[str, Policy]) -> str:
    if args.speedups:
        verb = "decides live and is" if len(policies) < 2 else "decide live and are"
        return f"Weights and inputs are random, and what is kept is imposed: {' and '.join(policies)} {verb} overruled."
    if args.checkpoint is None:
        return "The weights are random, and so is what a trained policy would keep."
    return f"The weights are those of {args.checkpoint}, and its policy decides."


def _results(
    args: argparse.Namespace, cfg: Config, model: TrimmedVLM, policies: dict[str, Policy], precision: Precision
) -> Iterator[dict[str, Any]]:
    """One result for each number of threads and batch size, printed as they come."""
    contest: Callable[[int], Contest]
    if args.random_inputs:
        contest = on_random(RandomBatches.of(model, args, precision), policies, args)
    else:
        contest = on_data(model, build_loader(cfg, args.split, model), policies, precision, args)
    for threads in args.threads or [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        for size in args.batch_sizes:
            name = f"batch {size}, {in_words(threads)}"
            this = contest(size)
            contenders = _contenders(args, model, this, precision)
            bar = Progress(f"benchmark, {name}", (args.warmup + args.rounds + 1) * len(contenders))
            with PartTimes(policies.values()) if args.profile else nullcontext() as parts:
                if parts is not None:
                    contenders = {name: run if name in DENSE_HOSTS else parts.of(name, run) for name, run in contenders.items()}
                result = compare_clocks(model, contenders, this.batches, warmup=args.warmup, on_run=bar.advance)
            bar.close()
            print(table(f"{name}, {args.rounds} rounds", result), flush=True)
            if parts is not None:
                timed = slice(args.warmup, args.warmup + args.rounds)  # the pass whose memory is measured is the last
                result["parts"] = {name: parts.milliseconds(name, timed) for name in contenders if name not in DENSE_HOSTS}
                print(parts_table(result["parts"]), flush=True)
            yield {"batch_size": size, "threads": threads, **result}


def _contenders(args: argparse.Namespace, model: TrimmedVLM, contest: Contest, precision: Precision) -> dict[str, Contender]:
    """All of one batch size, the baselines first."""
    found = dense_contenders(model)
    if args.compile:
        print("torch.compile: a first forward", flush=True)
        found[COMPILED] = compiled_contender(model, contest.first, precision)
    found = {name: in_precision(run, precision) for name, run in (found | dict(contest.contenders)).items()}
    if len(contest.first.images) == contest.first.pairs_per_sample:  # batch 1
        device = contest.first.images.device
        if device.type != "cuda" or contest.text_length is None:
            why = f"the model is on the {device.type}" if device.type != "cuda" else "texts of data have no known length"
            print(f"{GRAPHED}: left out, as {why}")
        else:
            length = contest.text_length
            try:
                found[GRAPHED] = graphed_contender(model, contest.first, text_length=length, precision=precision)
            except RuntimeError as error:  # a host may wait for the GPU; the others can be timed all the same
                print(f"{GRAPHED}: left out, as the host's forward is not captured: {str(error).strip().splitlines()[0]}")
    return found


def _write(args: argparse.Namespace, content: dict[str, Any]) -> None:
    path = _write_json(args, content)
    if path is None:
        return
    print(f"written to {path}")
    if writes_folder(args.out) and not args.crossover:
        write_atomically(str(path.with_suffix(".md")), markdown(content).encode())
        save(draw_clocks(content), path.with_suffix(".png"))
        print(f"table and figure: {path.with_suffix('.md')}, {path.with_suffix('.png')}")


def _write_json(args: argparse.Namespace, content: dict[str, Any]) -> Path | None:
    """Where it was written; None: nowhere, as asked."""
    if args.out is None:
        return None
    name = "crossover" if args.crossover else "benchmark"
    path = Path(args.out) / f"{name}.json" if writes_folder(args.out) else Path(args.out)
    write_atomically(str(path), (json.dumps(content, indent=1) + "\n").encode())
    return path
