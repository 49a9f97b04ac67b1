"""Whether a policy's decision before a layer saves more time than it takes.

What is measured, on packed random batches in which nothing was dropped before: for each layer, the time of deciding on tokens
and of cutting, the time of deciding on heads, and how much faster the layer runs for each token that is missing, and with
heads off. Layers of one stage and shape share their measurements. What is assumed: that in every stage the tokens of a stream
fall geometrically, layer by layer, to the share that decisions imposed for the wanted speed-up leave, a later stage beginning
where an earlier one ended; and that, where a decision is left out, its tokens stay until the next one. Which layers then
decide, so that decisions and layers together take least time, is found exactly (:func:`layers_that_pay`). What it does to the
accuracy is not known here.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from mmengine.config import Config

from smarttrim_mm.engine.contest import RandomBatches
from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.engine.stopwatch import LayerTimes, Stopwatch
from smarttrim_mm.layers.views import LayerStep, modality
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.registry import POLICIES

Layers = Mapping[str, Sequence[int]]  # by stage


def decision_costs(
    cfg: Config, model: TrimmedVLM, batches: RandomBatches, *, speedup: float, size: int, args: argparse.Namespace
) -> dict[str, Any]:
    """What each layer's decisions take and save.

    Args:
        cfg: The config; ``model.policy`` is asked for tokens and heads apart.
        model: Its model, in evaluation mode.
        batches: What to run it on.
        speedup: For which what is kept is imposed.
        size: Pairs of a batch.
        args: The options: rounds, warm-up, spread.

    Returns:
        JSON data: ``layers``, a row each; ``layers_that_pay``, by ``'token'`` and ``'head'``, by stage; and
        ``layers_that_cannot_pay`` likewise, of those where the policy decides.
    """
    rounds = range(args.warmup, args.warmup + args.rounds)
    imposed = batches.impose(model.policy, [speedup], size=size, rounds=rounds, spread=args.spread)[speedup]
    steps = [step for stage in model.backbone.steps.values() for step in stage]
    kinds = [POLICIES.build(settings, default_args={"steps": steps}) for settings in _apart(cfg.model.policy, steps)]
    for policy in kinds:
        batches.precision.cast(policy.to(next(model.parameters()).device).eval())
    watch = Stopwatch(model, *kinds, shares=imposed.shares)
    bar = Progress(f"decisions at {speedup:g}x", rounds.stop)
    with torch.inference_mode():
        for number, inputs in enumerate(batches.draw(size, rounds.stop)):
            watch.running = number >= args.warmup
            with batches.precision.context(inputs.images.device):
                model.trace(inputs, kind="packed", policy=watch)
            bar.advance()
    bar.close()
    return weigh(list(watch.times.values()), share=min(1.0, imposed.shares.mean) ** 2)


def weigh(times: Sequence[LayerTimes], *, share: float) -> dict[str, Any]:
    """Says of each layer what its decisions take and save, and which to leave out.

    Args:
        times: Of all layers, in the order of execution.
        share: Of a stream's tokens, what a stage leaves, in (0, 1].

    Returns:
        As :func:`decision_costs`.
    """
    stages: dict[str, list[LayerTimes]] = {}
    for each in times:
        stages.setdefault(each.step.stage, []).append(each)
    rows: list[dict[str, Any]] = []
    pay: dict[str, dict[str, list[int]]] = {"token": {}, "head": {}}
    cannot: dict[str, dict[str, list[int]]] = {"token": {}, "head": {}}
    ended: set[str] = set()  # modalities that an earlier stage has cut
    for stage, layers in stages.items():
        deciding = [layer for layer in layers if layer.decide_tokens]
        first = layers[0].step
        begin = {
            name: count * (share if modality(name) in ended and name not in first.anew else 1.0)
            for name, count in layers[0].tokens.items()
        }
        each_leaves = share ** (1 / len(deciding)) if deciding else 1.0
        passed, levels = 0, []
        for layer in layers:
            passed += bool(layer.decide_tokens)
            levels.append({name: count * each_leaves**passed for name, count in begin.items()})
        layers = pool(layers)
        decide = [median(layer.decide_tokens) if layer.decide_tokens else None for layer in layers]
        slopes = [{name: layer.ms_per_token(name) for name in begin} for layer in layers]
        running = [[sum(slope[name] * level[name] for name in begin) for level in (begin, *levels)] for slope in slopes]
        chosen = layers_that_pay(decide, running) if deciding else set()
        for number, layer in enumerate(layers):
            before = levels[number - 1] if number else begin
            rows.append(_row(layer, before, slopes[number], each_leaves))
            if layer.decide_tokens:
                (pay if number in chosen else cannot)["token"].setdefault(stage, []).append(layer.step.index)
            if layer.decide_heads:
                pays = median(layer.heads_off) > median(layer.decide_heads)
                (pay if pays else cannot)["head"].setdefault(stage, []).append(layer.step.index)
        for kind in pay:
            if stage in cannot[kind]:
                pay[kind].setdefault(stage, [])
        ended |= {modality(name) for name in begin} if deciding else set()
    return {"share_left_by_a_stage": share, "layers": rows, "layers_that_pay": pay, "layers_that_cannot_pay": cannot}


def pool(layers: Sequence[LayerTimes]) -> list[LayerTimes]:
    """The layers of a stage, those of one shape sharing their measurements: they do the same, and differ by noise."""

    def shape(layer: LayerTimes) -> tuple[Any, ...]:
        decides = (bool(layer.decide_tokens), bool(layer.decide_heads))
        return (tuple(layer.step.layers), tuple(layer.step.streams().items()), tuple(layer.per_token), decides)

    found = []
    for layer in layers:
        alike = [other for other in layers if shape(other) == shape(layer)]
        found.append(
            replace(
                layer,
                decide_tokens=[ms for other in alike for ms in other.decide_tokens],
                decide_heads=[ms for other in alike for ms in other.decide_heads],
                heads_off=[ms for other in alike for ms in other.heads_off],
                per_token={name: [ms for other in alike for ms in other.per_token[name]] for name in layer.per_token},
            )
        )
    return found


def layers_that_pay(decide: Sequence[float | None], running: Sequence[Sequence[float]]) -> set[int]:
    """The layers that should decide, so that decisions and layers together take least time.

    Args:
        decide: Time of the decision before each layer; None: there can be none.
        running: ``running[i][j]``, the time of layer ``i`` if the last decision was that before layer ``j - 1``, 0: if there
            was none.

    Returns:
        Numbers of layers.
    """
    count = len(decide)
    best: list[tuple[float, set[int]]] = [(0.0, set())] * (count + 1)  # what the layers from i on take, if i decides
    for here in reversed(range(-1, count)):
        cost = decide[here] if here >= 0 else 0.0
        if cost is None:
            continue
        options = []
        carried = 0.0
        for after in range(max(here, 0), count + 1):
            if after > here and (after == count or decide[after] is not None):
                later, chosen = best[after + 1] if after < count else (0.0, set())
                options.append((cost + carried + later, chosen))
            if after < count:
                carried += running[after][here + 1]
        least, chosen = min(options, key=lambda option: option[0])
        best[here + 1] = (least, chosen | ({here} if here >= 0 else set()))
    return best[0][1]


def layer_settings(settings: Mapping[str, Any], layers: Mapping[str, Layers]) -> list[str]:
    """Settings of a config that leave decisions to some layers, as ``--cfg-options`` takes them.

    Args:
        settings: The config's policy.
        layers: By ``'token'`` and ``'head'``, by stage.

    Raises:
        ValueError: If the policy has no such settings.
    """
    names = _names(settings)
    return [
        f"model.policy.{name}.{stage}=[{','.join(map(str, indices))}]"
        for kind, name in names.items()
        for stage, indices in layers.get(kind, {}).items()
    ]


def _names(settings: Mapping[str, Any]) -> dict[str, str]:
    """What the policy calls the layers where it decides on tokens and on heads."""
    cls = POLICIES.get(settings["type"])
    taken = set(inspect.signature(cls.__init__).parameters)
    if {"token_layers", "head_layers"} <= taken:
        return {"token": "token_layers", "head": "head_layers"}
    if "layers" in taken:
        return {"token": "layers"}
    raise ValueError(
        f"--crossover: {cls.__name__} has no setting of the layers where it decides; expected token_layers and head_layers, or "
        "layers. Give a config of another policy"
    )


def _apart(settings: Mapping[str, Any], steps: Sequence[LayerStep]) -> list[dict[str, Any]]:
    """Settings of the same policy deciding on tokens alone, and on heads alone."""
    names = _names(settings)
    nowhere: dict[str, list[int]] = {step.stage: [] for step in steps}
    if "head" not in names:
        return [dict(settings), {"type": "Dense"}]
    return [{**settings, names["head"]: nowhere}, {**settings, names["token"]: nowhere}]


def _row(layer: LayerTimes, tokens: Mapping[str, float], slopes: Mapping[str, float], leaves: float) -> dict[str, Any]:
    """One layer, as JSON data.

    ``pays_from_tokens``: with how many tokens, in the proportion that its streams have, a decision that drops its share saves
    its own time in this layer alone; None: with none.
    """
    decides = bool(layer.decide_tokens)
    count = sum(tokens.values())
    saved = (1 - leaves) * sum(slopes[name] * tokens[name] for name in tokens)
    spent = median(layer.decide_tokens) if decides else None
    return {
        "layer": layer.step.name,
        "tokens": count if decides else None,
        "tokens_ms": spent,
        "ms_per_token": sum(slopes[name] * tokens[name] for name in tokens) / count if count else None,
        "saved_ms": saved if decides else None,
        "pays_from_tokens": count * spent / saved if spent is not None and saved > 0 else None,
        "heads_ms": median(layer.decide_heads) if layer.decide_heads else None,
        "heads_save_ms": median(layer.heads_off) if layer.heads_off else None,
    }
