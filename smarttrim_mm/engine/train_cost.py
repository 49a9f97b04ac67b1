"""What a step of fine-tuning with a policy costs, in time and memory, against a step of plain fine-tuning.

Plain is the config's own model with the same weights, task loss and optimiser, under the dense policy, without distillation and
budget. Its attention is :func:`~smarttrim_mm.ops.attention.padded_attention`, as in every training here: a host that attends in
another way may be slower.

All run in one process on new batches, see :func:`~smarttrim_mm.engine.timing.interleave`, and share one set of weights. A step
of training computes on every token, whatever is kept: its cost depends neither on the weights nor on what they decide, so that
random ones serve.

**Peak memory** is what tensors take at the highest point of a step: what is there before it (parameters, buffers, the state of
the optimiser, counted from the tensors themselves), and the most that the step allocates on top of that, gradients included.
The latter is measured by :mod:`~smarttrim_mm.engine.memory`.
"""

import argparse
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import Tensor, nn

from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.engine.cost_sheet import check_length
from smarttrim_mm.engine.imposing import random_answers, random_rounds
from smarttrim_mm.engine.machine import in_words, load, machine, synchronizer
from smarttrim_mm.engine.memory import MIB, peak_growth, storage_bytes
from smarttrim_mm.engine.progress import Progress
from smarttrim_mm.engine.timing import Spread, interleave
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.optim.autocast import AutocastOptimWrapper
from smarttrim_mm.policies.dense import Dense
from smarttrim_mm.registry import MODELS
from smarttrim_mm.utils.checkpoint_io import check_out, write_atomically
from smarttrim_mm.utils.random_inputs import random_targets

PLAIN = "plain"
PARTS = ("dense pass", "forward", "backward", "optimizer")
MODES = {"fp32": (False, False), "bf16": (True, False), "checkpointed": (False, True), "bf16+checkpointed": (True, True)}
WARMUP = 2
ANSWER_LENGTH = 5


@dataclass
class Step:
    """A step of training: forward, backward, update.

    Attributes:
        model: The model, in training mode.
        optim: Its optimiser, with or without autocast.
        checkpoint_layers: Whether layers are recomputed in the backward pass.
        synchronize: Waits until the device is idle.
        clock: Gives seconds.
    """

    model: TrimmedVLM
    optim: OptimWrapper
    checkpoint_layers: bool
    synchronize: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter

    def __call__(self, inputs: VLMInputs) -> dict[str, float]:
        """Trains on a batch; gradients are gone afterwards.

        Returns:
            Seconds of each of ``PARTS``: the dense pass that teaches (0 without one), the rest of the forward pass with the
            losses, the backward pass with what it recomputes, and clipping, update and removal of the gradients.
        """
        self.model.checkpoint_layers = self.checkpoint_layers
        spent = dict.fromkeys(PARTS, 0.0)
        with self._timing_the_teacher(spent), self.optim.optim_context(self.model):
            begin = self._now()
            loss, _ = self.model.parse_losses(self.model.loss(inputs))
            spent["forward"] = self._now() - begin - spent["dense pass"]
        begin = self._now()
        self.optim.backward(self.optim.scale_loss(loss))
        spent["backward"] = self._now() - begin
        begin = self._now()
        self.optim.step()
        self.optim.zero_grad()
        spent["optimizer"] = self._now() - begin
        return spent

    def _now(self) -> float:
        self.synchronize()
        return self.clock()

    @contextmanager
    def _timing_the_teacher(self, spent: dict[str, float]) -> Iterator[None]:
        """Adds the time of passes under the model's own dense policy, which is that of distillation alone."""
        begins: list[float] = []

        def before(_: nn.Module, args: tuple[VLMInputs, Execution]) -> None:
            if args[1].policy is self.model.dense:
                begins.append(self._now())

        def after(_: nn.Module, args: tuple[VLMInputs, Execution], __: object) -> None:
            if args[1].policy is self.model.dense:
                spent["dense pass"] += self._now() - begins.pop()

        handles = []
        for module in (self.model.backbone, *self.model.frozen):
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def plain_model(model: TrimmedVLM, settings: Mapping[str, Any]) -> TrimmedVLM:
    """The model of plain fine-tuning, around the same weights.

    Args:
        model: The model with the policy.
        settings: Its config, ``cfg.model``.

    Raises:
        ValueError: If the config's policy is dense already.
    """
    if isinstance(model.policy, Dense):
        raise ValueError("model.policy is Dense, which is plain fine-tuning itself; give the config of a policy that trims")
    others = {"policy": {"type": "Dense"}, "distillation": None, "budget": None, "data_preprocessor": model.data_preprocessor}
    plain: TrimmedVLM = MODELS.build({**settings, "backbone": model.backbone, **others})
    return plain.train(model.training)


def build_steps(model: TrimmedVLM, cfg: Config, modes: Sequence[str] = tuple(MODES)) -> dict[str, Step]:
    """The steps of training that are compared, by name: the plain one in fp32 first.

    Args:
        model: The config's model, in training mode.
        cfg: Gives the model's parts and the optimiser.
        modes: Names of ``MODES``; fp32 is always among them.
    """
    settings = {key: value for key, value in cfg.optim_wrapper.items() if key not in ("loss_scale", "dtype")}
    settings |= {"type": "OptimWrapper", "accumulative_counts": 1}  # each step has its update
    logging.disable(logging.INFO)  # the constructor tells of each parameter
    try:
        in_fp32 = build_optim_wrapper(model, settings)  # skips what has no gradient: in a plain step, the policy's weights
    finally:
        logging.disable(logging.NOTSET)
    clip = settings.get("clip_grad")
    in_bf16 = AutocastOptimWrapper(in_fp32.optimizer, clip_grad=dict(clip) if clip else None)
    wait = synchronizer(model)
    found = {}
    for own, name in ((plain_model(model, cfg.model), PLAIN), (model, type(model.policy).__name__)):
        for mode, (amp, checkpointed) in MODES.items():
            if mode == "fp32" or mode in modes:
                label = name if mode == "fp32" else f"{name}, {mode}"
                found[label] = Step(own, in_bf16 if amp else in_fp32, checkpointed, wait)
    return found


def train_cost(
    steps: Mapping[str, Step],
    batches: Iterator[VLMInputs],
    *,
    warmup: int = WARMUP,
    on_run: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Measures peak memory, then time, of steps of training.

    Args:
        steps: By name; the first is what the others are compared with, the last has every part of the model.
        batches: The first is for memory; then a new one for each round, the warm-up's first.
        warmup: Rounds that are not timed.
        on_run: Told of each step.

    Returns:
        JSON data: ``rounds``; for each contender ``ratio`` to the first, ``ms_per_step``, the ``parts`` of its time as shares
        of the first's whole step (medians and quartiles of the rounds), and ``peak_mib`` with ``held_mib``, the part of it that
        is there between steps.
    """
    reference, *_, last = steps
    first = next(batches)
    steps[last](first)  # makes all of the optimiser's state, before any memory is measured
    memory = {}
    for name, step in steps.items():
        held = held_bytes(step)
        memory[name] = (held + peak_growth(partial(step, first), next(step.model.parameters()).device), held)
        on_run()
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in steps}

    def told(step: Step) -> Callable[[VLMInputs], dict[str, float]]:
        def run(inputs: VLMInputs) -> dict[str, float]:
            spent = step(inputs)
            on_run()
            return spent

        return run

    contenders = {name: told(step) for name, step in steps.items()}
    timings = interleave(
        contenders,
        batches,
        warmup=warmup,
        synchronize=next(iter(steps.values())).synchronize,
        after=lambda name, _, spent: parts[name].append(spent),
    )
    whole = timings.seconds[reference]
    return {
        "rounds": timings.rounds,
        "contenders": {
            name: {
                "ratio": asdict(timings.speedup(reference, name)),
                "ms_per_step": asdict(timings.milliseconds(name)),
                "parts": {
                    part: asdict(Spread.of(spent[part] / base for spent, base in zip(parts[name], whole, strict=True)))
                    for part in PARTS
                },
                "peak_mib": memory[name][0] / MIB,
                "held_mib": memory[name][1] / MIB,
            }
            for name in steps
        },
    }


def held_bytes(step: Step) -> int:
    """Bytes of what is there between steps: the model, a frozen teacher, and the optimiser's state for them."""
    modules: list[nn.Module] = [step.model, *step.model.frozen]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    state = step.optim.optimizer.state
    tensors += [value for tensor in tensors for value in state.get(tensor, {}).values() if isinstance(value, Tensor)]
    return storage_bytes(tensors)


def table(name: str, result: Mapping[str, Any]) -> str:
    """Ratios, memory and parts of one configuration, as a few lines of text.

    Args:
        name: Heading.
        result: What :func:`train_cost` returned.
    """
    header = f"{'x plain':>10}{'middle half':>16}{'peak MiB':>10}"
    lines = [f"{name:<32}{header}" + "".join(f"{part:>12}" for part in PARTS)]
    reference = next(iter(result["contenders"]))
    for contender, row in result["contenders"].items():
        ratio = row["ratio"]
        half = "" if contender == reference else f"{ratio['q1']:.2f} - {ratio['q3']:.2f}"
        parts = "".join(f"{row['parts'][part]['median']:>12.2f}" for part in PARTS)
        lines.append(f"{contender:<32}{ratio['median']:>10.2f}{half:>16}{row['peak_mib']:>10.0f}{parts}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/train_cost.py``."""
    parser = argparse.ArgumentParser(
        "train_cost.py",
        description="Compare a step of training with a policy (forward, backward, update) with one of plain fine-tuning of the "
        "same model: time as ratios, new batches each round, contenders in rotated order; peak memory; and where the time "
        "goes, in shares of a plain step. Each also with bfloat16 autocast, with activation checkpointing, and with both.",
    )
    parser.add_argument("config", nargs="+", help="config file of a policy that trims; several are run one after the other")
    parser.add_argument("--batch-size", type=int, metavar="N", help="samples of a batch (default: the config's)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each contender (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=WARMUP, help="steps before them (default: %(default)s)")
    parser.add_argument(
        "--modes", nargs="+", choices=tuple(MODES), default=tuple(MODES), help="which to run beside fp32 (default: all)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and inputs (default: 0)")
    parser.add_argument(
        "--random-inputs", action="store_true", help="random images, texts and targets of the model's size: no data are read"
    )
    parser.add_argument(
        "--text-length",
        type=int,
        metavar="T",
        help="tokens of random texts, begin and end included (default: as tools/cost.py)",
    )
    parser.add_argument(
        "--answer-length",
        type=int,
        metavar="T",
        help=f"tokens of the random text that a decoder is taught for each sample (default: {ANSWER_LENGTH})",
    )
    parser.add_argument("--answers", type=int, metavar="N", help="N random answers, in place of the config's list")
    parser.add_argument("--out", metavar="FILE", help="write everything to this JSON file")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="change settings of the configs: a.b=1"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What ``tools/train_cost.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Returns:
        JSON data: the machine, the load, the command, and one result for each config.

    Raises:
        ValueError: If a number, the config or the data does not fit.
        FileNotFoundError: If a config is missing.
    """
    args = parser().parse_args(argv)
    _check(args)
    check_out("--out", args.out)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    content: dict[str, Any] = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv] if argv is None else ["train_cost.py", *argv]),
        "seed": args.seed,
        "threads": torch.get_num_threads(),
        "units": "ratio to a plain fp32 step; parts in shares of one; ms per step; peak memory of tensors in MiB",
        "load_average": {"before": load()},
        "results": [],
    }
    for path in args.config:
        torch.manual_seed(args.seed)
        cfg = read_config(path, args.cfg_options)
        if args.answers is not None:
            answers = random_answers(args.answers, cfg.get("model", {}).get("backbone", {}), args.seed)
            cfg.model.backbone.merge({"answers": answers})
        model = build_model(cfg).train()
        steps = build_steps(model, cfg, args.modes)
        size = args.batch_size or cfg.train_dataloader.batch_size
        name = f"batch {size}, {in_words(torch.get_num_threads())}, {args.steps} steps"
        print(path, flush=True)
        rounds = args.warmup + args.steps + 1
        batches = _random(model, size, rounds, args) if args.random_inputs else _of_data(model, cfg, size, rounds)
        bar = Progress("train_cost", len(steps) * rounds)
        result = train_cost(steps, batches, warmup=args.warmup, on_run=bar.advance)
        bar.close()
        content["machine"] = machine(next(model.parameters()).device)
        about = {"config": path, "policy": type(model.policy).__name__, "batch_size": size, "random_inputs": args.random_inputs}
        content["results"].append(about | result)
        print(table(name, result), flush=True)
    content["load_average"]["after"] = load()
    here = content["machine"]
    print(f"{here.get('gpu', here['cpu'])}, torch {here['torch']}, load {content['load_average']}")
    if content["load_average"]["before"][0] > 0.5:
        print("The machine was busy when this began: the spread of the ratios tells how far to trust them.")
    if args.out is not None:
        write_atomically(args.out, (json.dumps(content, indent=1) + "\n").encode())
        print(f"written to {args.out}")
    return content


def _check(args: argparse.Namespace) -> None:
    for name, value, least in (
        ("--steps", args.steps, 1),
        ("--warmup", args.warmup, 0),
        ("--batch-size", args.batch_size, 1),
        ("--threads", args.threads, 1),
        ("--answers", args.answers, 1),
        ("--answer-length", args.answer_length, 2),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}")
    for name, value in (
        ("--text-length", args.text_length),
        ("--answer-length", args.answer_length),
        ("--answers", args.answers),
    ):
        if value is not None and not args.random_inputs:
            raise ValueError(f"{name} is {value} without --random-inputs: the config's data have their own")


def _of_data(model: TrimmedVLM, cfg: Config, batch_size: int, rounds: int) -> Iterator[VLMInputs]:
    """Batches of the config's training, from the beginning again where they end."""
    cfg.train_dataloader.batch_size = batch_size
    loader = build_loader(cfg, "train", model)
    for data in islice(chain.from_iterable(repeat(loader)), rounds):
        yield model.data_preprocessor(data, True)["inputs"]


def _random(model: TrimmedVLM, batch_size: int, rounds: int, args: argparse.Namespace) -> Iterator[VLMInputs]:
    """Random batches with targets as the model's loss wants them."""
    if getattr(model.data_preprocessor, "rank_texts", False):
        raise ValueError("--random-inputs has one text an image, and this model is trained to rank several; leave it out")
    shape, device = model.backbone.input_format, next(model.parameters()).device
    length = check_length(shape, args.text_length)
    kind = getattr(model.task_loss, "target_kind", "classes")
    drawn = random_rounds(shape, text_length=length, batch_size=batch_size, rounds=rounds, seed=args.seed)
    for number, inputs in enumerate(drawn):
        targets = random_targets(
            kind, shape, batch_size, length=args.answer_length or ANSWER_LENGTH, seed=1_000_003 * args.seed + number
        )
        yield replace(inputs, targets=targets).to(device)
