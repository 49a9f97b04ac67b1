"""From what size on packed execution is worth it on a machine, and which layers' decisions are.

Both are measured on random weights and inputs, decisions imposed; nothing is known here of what leaving out a decision does to
the accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from mmengine.config import Config

from smarttrim_mm.engine.contenders import Contender, in_precision
from smarttrim_mm.engine.contest import RandomBatches
from smarttrim_mm.engine.decision_cost import decision_costs, layer_settings
from smarttrim_mm.engine.machine import synchronizer
from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.engine.timing import interleave
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM


def find_crossover(cfg: Config, model: TrimmedVLM, batches: RandomBatches, args: argparse.Namespace) -> dict[str, Any]:
    """Finds both, and prints the settings to use.

    Args:
        cfg: The config.
        model: Its model, in evaluation mode.
        batches: What to run it on.
        args: The options: speed-ups, batch sizes (the largest counts), rounds.

    Returns:
        JSON data: ``sizes``, see :func:`packed_against_dense_shapes`; ``packed_from``, one of them, None where packed execution
        does not win up to the largest; ``decisions``, see :func:`~smarttrim_mm.engine.decision_cost.decision_costs`, at the
        largest size and each speed-up; ``settings``, lines for the config, where ``packed_from`` counts image-text pairs.
    """
    largest = max(args.batch_sizes)
    sizes = [2**power for power in range(largest.bit_length()) if 2**power < largest] + [largest]
    settings_of = partial(layer_settings, cfg.model.policy)
    settings_of({})  # a policy without such settings is refused before anything is timed
    found = packed_against_dense_shapes(model, batches, sizes, args)
    packed_from = first_of_wins({size: min(ratios["median"] for ratios in each.values()) for size, each in found.items()})
    pairs = model.backbone.input_format.get("images_per_text", 1)
    lines = [] if packed_from is None else [f"model.packed_from={packed_from * pairs}"]
    if packed_from is None:
        print(f"packed execution does not beat the same decisions in dense shapes up to batch {largest} at every speed-up")
    decisions = {}
    for speedup in args.speedups:
        costs = decision_costs(cfg, model, batches, speedup=speedup, size=largest, args=args)
        decisions[f"{speedup:g}"] = costs
        print(_layers_in_words(costs, speedup, largest))
        lines += [f"# at {speedup:g}x, batch {largest}", *settings_of(costs["layers_that_pay"])]
    print("\n".join(["settings of the config (--cfg-options, or in its text):", *lines]), flush=True)
    return {
        "sizes": {str(size): ratios for size, ratios in found.items()},
        "packed_from": packed_from,
        "decisions": decisions,
        "settings": lines,
    }


def packed_against_dense_shapes(
    model: TrimmedVLM, batches: RandomBatches, sizes: Sequence[int], args: argparse.Namespace
) -> dict[int, dict[str, dict[str, float]]]:
    """How many times faster packed execution is than the same decisions in dense shapes, by size and speed-up.

    Returns:
        Medians and quartiles of the ratios of rounds.
    """
    rounds = range(args.warmup, args.warmup + args.rounds)
    bar = Progress("crossover of packed execution", 2 * len(sizes) * len(args.speedups) * rounds.stop)
    found = {}
    for size in sizes:
        imposed = batches.impose(model.policy, args.speedups, size=size, rounds=rounds, spread=args.spread)
        contenders: dict[str, Contender] = {}
        for speedup, policy in imposed.items():
            for kind in ("packed", "masked"):
                run: Callable[..., Any] = partial(model.trace, kind=kind, policy=policy)
                contenders[f"{kind} {speedup:g}"] = in_precision(run, batches.precision)
        with torch.inference_mode():
            timings = interleave(
                contenders,
                batches.draw(size, rounds.stop, imposed.values()),
                warmup=args.warmup,
                synchronize=synchronizer(model),
                on_run=bar.advance,
            )
        found[size] = {
            f"{speedup:g}": asdict(timings.speedup(f"packed {speedup:g}", f"masked {speedup:g}")) for speedup in imposed
        }
    bar.close()
    for size, ratios in found.items():
        each = ", ".join(f"{ratio['median']:.2f} at {speedup}x" for speedup, ratio in ratios.items())
        print(f"batch {size}: packed is {each} times as fast as dense shapes")
    return found


def first_of_wins(ratios: Mapping[int, float]) -> int | None:
    """The least size from which on every measured ratio is above 1; None: the largest size's is not.

    Args:
        ratios: By size.
    """
    found = None
    for size in sorted(ratios, reverse=True):
        if ratios[size] <= 1:
            break
        found = size
    return found


def _layers_in_words(costs: Mapping[str, Any], speedup: float, size: int) -> str:
    lines = [f"decisions at {speedup:g}x, batch {size} (ms per batch; tokens per instance)"]
    lines.append(f"{'layer':<16}{'decide':>9}{'per 1000 tokens':>17}{'tokens':>8}{'pays from':>11}{'heads':>9}{'save':>9}")
    for row in costs["layers"]:
        tokens = ("", "") if row["tokens"] is None else (f"{row['tokens']:.0f}", _count(row["pays_from_tokens"]))
        heads = ("", "") if row["heads_ms"] is None else (f"{row['heads_ms']:.3f}", f"{row['heads_save_ms']:.3f}")
        decide, slope = (
            ("", "") if row["tokens_ms"] is None else (f"{row['tokens_ms']:.3f}", f"{1000 * row['ms_per_token']:.3f}")
        )
        cells = [(decide, 9), (slope, 17), (tokens[0], 8), (tokens[1], 11), (heads[0], 9), (heads[1], 9)]
        lines.append((f"{row['layer']:<16}" + "".join(f"{text:>{width}}" for text, width in cells)).rstrip())
    for kind, stages in costs["layers_that_cannot_pay"].items():
        named = [f"{stage}.{index}" for stage, indices in stages.items() for index in indices]
        lines.append(f"{kind} decisions that take more time than they save: {', '.join(named) or 'none'}")
    return "\n".join(lines)


def _count(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f}"
