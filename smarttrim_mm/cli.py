"""What ``tools/train.py`` and ``tools/test.py`` do: mmengine's Runner, with checks before it writes anything."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from smarttrim_mm.evaluation.answer_dump import AnswerDump
from smarttrim_mm.hooks.log_processor import summarise_ratios
from smarttrim_mm.models.checkpoint import check_policy_weights
from smarttrim_mm.models.slicing import adopt_slices
from smarttrim_mm.optim.autocast import AutocastOptimWrapper
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file, newest_checkpoint, use_safe_loader, write_atomically
from smarttrim_mm.utils.config import read_config
from smarttrim_mm.utils.launch import LAUNCHERS, call_on_main, init_processes, unwrapped_model, wrap_for_cpu
from smarttrim_mm.utils.run_guard import claim_work_dir


def train(argv: Sequence[str] | None = None) -> Runner:
    """Trains a model.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Returns:
        The runner, after training.

    Raises:
        ValueError: If an option does not fit, the work dir holds another config's run, or a checkpoint is unfit.
        FileNotFoundError: If a checkpoint is missing.
    """
    args = train_parser().parse_args(argv)
    cfg = _read_config(args, default_work_dir="./work_dirs/{}")
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    init_processes(args.launcher, cfg.get("env_cfg", {}))
    wrap_for_cpu(cfg)
    found = call_on_main(lambda: _prepare(cfg, args.resume))
    if found is not None:
        resume_from(cfg, found)
    adopt_slices(cfg, cfg.get("load_from"))
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    runner = Runner.from_cfg(cfg)
    if args.resume and found is None:
        runner.logger.warning(f"{cfg.work_dir} holds no checkpoint to resume from: training starts at the beginning")
    runner.train()
    return runner


def test(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Tests a checkpoint.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Returns:
        The metrics.

    Raises:
        ValueError: If the checkpoint is unreadable, or does not fit the config.
        FileNotFoundError: If it is missing.
    """
    args = test_parser().parse_args(argv)
    cfg = _read_config(args, default_work_dir="./work_dirs/{}/test")
    cfg.load_from, cfg.resume = args.checkpoint, False
    if "logger" in cfg.get("default_hooks", {}):  # a test is short: its progress shows every few batches
        cfg.default_hooks.logger.interval = min(cfg.default_hooks.logger.get("interval", 10), 10)
    if args.out:
        _metrics(cfg).append({"type": AnswerDump.__name__})
    if args.speedup_report:
        report = next((metric for metric in _metrics(cfg) if metric["type"].endswith("ComputeReport")), None)
        if report is None:
            report = {"type": "ComputeReport"}
            cfg.test_evaluator.append(report)
        report["out_file"] = args.speedup_report
    init_processes(args.launcher, cfg.get("env_cfg", {}))
    wrap_for_cpu(cfg)
    names = call_on_main(lambda: _weight_names(args.checkpoint))
    adopt_slices(cfg, args.checkpoint)
    use_safe_loader()
    runner = Runner.from_cfg(cfg)
    check_policy_weights(unwrapped_model(runner), names, args.checkpoint)
    metrics = runner.test()
    if is_main_process():
        if args.out:
            _write_answers(args.out, args, runner, metrics)
        if args.speedup_report:
            runner.logger.info(f"\n{speedup_table(metrics)}\nwritten to {args.speedup_report}")
    return metrics


def train_parser() -> argparse.ArgumentParser:
    """The command line of ``tools/train.py``."""
    parser = argparse.ArgumentParser("train.py", description="Train a model, on one CPU, one GPU or many.")
    _add_common(parser, work_dir_help="folder of checkpoints and logs (default: work_dirs/NAME_OF_CONFIG)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from the newest readable checkpoint of the work dir, or from the one given",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision: float16 on a GPU, bfloat16 on a CPU")
    parser.add_argument("--no-validate", action="store_true", help="do not validate while training")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate to the real total batch size")
    return parser


def test_parser() -> argparse.ArgumentParser:
    """The command line of ``tools/test.py``."""
    parser = argparse.ArgumentParser("test.py", description="Test a checkpoint, on one CPU, one GPU or many.")
    _add_common(parser, work_dir_help="folder of the logs (default: work_dirs/NAME_OF_CONFIG/test)")
    parser.add_argument("checkpoint", help="file written by train.py")
    parser.add_argument("--out", metavar="FILE", help="write the metrics and every answer to this JSON file")
    parser.add_argument(
        "--speedup-report", metavar="FILE", help="write multiply-adds and kept ratios to this JSON file, print a table"
    )
    return parser


def use_amp(cfg: Config) -> None:
    """Switches a config to mixed precision: mmengine's on a GPU, bfloat16 without loss scaling on a CPU."""
    wanted = AutocastOptimWrapper.__name__ if get_device() == "cpu" else "AmpOptimWrapper"
    kind = cfg.optim_wrapper.get("type", "OptimWrapper")
    if kind not in ("OptimWrapper", "AmpOptimWrapper", AutocastOptimWrapper.__name__):
        raise ValueError(f"--amp cannot replace optim_wrapper.type {kind!r}; expected 'OptimWrapper', or leave --amp out")
    cfg.optim_wrapper.type = wanted
    if wanted == "AmpOptimWrapper":
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    else:
        for key in ("loss_scale", "dtype"):
            cfg.optim_wrapper.pop(key, None)


def enable_auto_scale_lr(cfg: Config) -> None:
    """Lets the Runner scale the learning rate by the total batch size over ``auto_scale_lr.base_batch_size``."""
    if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
        raise ValueError(
            f"--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in {cfg.filename}: the total batch size that its "
            "learning rate was chosen for"
        )
    cfg.auto_scale_lr.enable = True


def resume_from(cfg: Config, checkpoint: str) -> None:
    """Lets the Runner go on from a checkpoint.

    Args:
        cfg: The config, changed in place.
        checkpoint: A file that this config's training wrote.

    Raises:
        ValueError: If it holds weights only.
    """
    content = load_checkpoint_file(checkpoint, mmap=True)
    missing = [key for key in ("meta", "optimizer", "message_hub") if key not in content]
    if missing:
        raise ValueError(
            f"{checkpoint} cannot be resumed from, as it has no {', '.join(missing)}; to start from its weights use "
            f"--cfg-options load_from={checkpoint}"
        )
    cfg.load_from, cfg.resume = checkpoint, True
    randomness = cfg.setdefault("randomness", {"seed": None})
    if randomness.get("seed") is None:  # else the sampler would draw another order than the one that is gone on with
        randomness["seed"] = content["meta"].get("seed")


def speedup_table(metrics: dict[str, Any]) -> str:
    """Compute per sample and kept ratios, as a few lines of text.

    Args:
        metrics: Those of a test with a ``ComputeReport``.
    """
    prefix = next(name.removesuffix("speedup") for name in metrics if name.endswith("speedup"))
    values = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    rows = [
        ("decided", *(values[f"multiply_adds{suffix}"] for suffix in ("", "_p05", "_p95"))),
        ("executed, images shared", values["executed_multiply_adds"]),
        ("dense", values["dense_multiply_adds"]),
    ]
    if "unsliced_multiply_adds" in values:
        rows.append(("dense, before slicing", values["unsliced_multiply_adds"]))
    lines = [f"{'multiply-adds, M per sample':<27}{'mean':>10}{'p5':>10}{'p95':>10}"]
    lines += [f"{name:<27}" + "".join(f"{number:>10.3f}" for number in numbers) for name, *numbers in rows]
    lines.append(f"{'dense / decided':<27}{values['speedup']:>10.3f}")
    if "packed" in values:
        lines.append(f"{'share that ran packed':<27}{values['packed']:>10.3f}")
    lines.append(summarise_ratios(values))
    return "\n".join(filter(None, lines))


def _add_common(parser: argparse.ArgumentParser, work_dir_help: str) -> None:
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help=work_dir_help)
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="change settings of the config: a.b=1 c='[1,2]' d.0.e=text",
    )
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="what started the processes")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def _read_config(args: argparse.Namespace, default_work_dir: str) -> Config:
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = default_work_dir.format(Path(args.config).stem)
    return cfg


def _prepare(cfg: Config, resume: str | None) -> str | None:
    """Checks everything that can be refused before a training starts; returns the checkpoint to resume from."""
    checkpoint = newest_checkpoint(cfg.work_dir) if resume == "auto" else resume
    start = checkpoint or cfg.get("load_from")
    if start is not None and "://" not in start:
        load_checkpoint_file(start, mmap=True)
    claim_work_dir(cfg.work_dir, cfg, resuming=checkpoint is not None)
    return checkpoint


def _weight_names(checkpoint: str) -> list[str]:
    content = load_checkpoint_file(checkpoint, mmap=True)
    return list(content.get("state_dict", content))


def _metrics(cfg: Config) -> list:
    """The config's metrics of the test, as a list that can be added to."""
    evaluator = cfg.get("test_evaluator")
    if evaluator is None:
        raise ValueError(f"{cfg.filename} has no test_evaluator, so that there is nothing to test")
    if not isinstance(evaluator, list):
        cfg.test_evaluator = [evaluator]
    return cfg.test_evaluator


def _write_answers(path: str, args: argparse.Namespace, runner: Runner, metrics: dict[str, Any]) -> None:
    dump = next(metric for metric in runner.test_loop.evaluator.metrics if isinstance(metric, AnswerDump))
    content = {"config": args.config, "checkpoint": args.checkpoint, "metrics": metrics, "predictions": dump.answers}
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    runner.logger.info(f"{len(dump.answers)} answers written to {path}")
