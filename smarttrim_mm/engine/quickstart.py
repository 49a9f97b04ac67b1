"""The quickstart: trains, prunes, calibrates, tests and times a small METER, and writes one report."""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from smarttrim_mm.engine.report import Row, build_report
from smarttrim_mm.engine.report_text import render, render_console
from smarttrim_mm.engine.stages import Chain, Stage, StageError, shown_path
from smarttrim_mm.engine.tool_stages import SMOKE_TEST, SMOKE_TRAIN, SMOKE_VAL, ToolStages, chosen_checkpoint
from smarttrim_mm.engine.visualize import CURVES, PATCHES
from smarttrim_mm.utils.checkpoint_io import write_atomically
from smarttrim_mm.utils.run_guard import comparable_settings

ROOT = Path(__file__).resolve().parents[2]
MARGIN = 0.04  # share above it that is aimed at: on other images the ratio moves by a per cent or two
SPEEDUP = 2.0  # dense over trimmed multiply-adds; the budgets of the configs aim a little above it
BATCH_SIZES = (1, 32)
LONGER = "dense-longer"  # the dense model, trained on as SmartTrim is fine-tuned
BASELINES = ("local-only", "random")


@dataclass(frozen=True)
class Plan:
    """Where everything of one quickstart lies.

    Attributes:
        folder: The work dir.
        configs: Folder of ``quickstart_dense.py`` and the others.
        root: Folder that commands run in.
        seed: Of the trainings, the random policy and the benchmark's draw.
        speedup: What the policies are calibrated to.
        policies: The trimmed models, SmartTrim first.
        controls: Untrimmed models to compare with, besides the dense one.
        smoke: A few iterations on a few images.
    """

    folder: Path
    configs: Path
    root: Path
    seed: int
    speedup: float
    policies: tuple[str, ...]
    controls: tuple[str, ...]
    smoke: bool

    def config(self, name: str) -> Path:
        return self.configs / f"quickstart_{name}.py"

    def work_dir(self, name: str) -> Path:
        return self.folder / name

    def calibrated(self, name: str) -> Path:
        return self.folder / "calibrated" / f"{name}.pth"

    def tested(self, name: str) -> Path:
        return self.folder / "tested" / name

    @property
    def benchmark(self) -> Path:
        return self.folder / "benchmark.json"

    @property
    def pictures(self) -> Path:
        return self.folder / "pictures"

    def shown(self, path: Path) -> str:
        return shown_path(path, self.root)

    def policy_options(self, name: str) -> list[str]:
        """What the seed sets in the policy."""
        return [f"model.policy.seed={self.seed}"] if name == "random" else []


def plan_stages(plan: Plan) -> list[Stage]:
    """All stages in their order."""
    stages = [_train(plan, "dense", "train the dense model", start=None)]
    for name in plan.policies:
        start = partial(chosen_checkpoint, plan.work_dir("dense"))
        if name == "random":  # its one number is set before it is trained, there being nothing to learn
            stages.append(_calibrate(plan, name, "random-start", "find the keep ratio of the random policy", start))
            start = partial(plan.calibrated, "random-start")
        stages.append(_train(plan, name, f"fine-tune with {title(name)}", start))
        calibrating = f"calibrate {title(name)} to {plan.speedup:g}x on held-out training images"
        stages.append(_calibrate(plan, name, name, calibrating, partial(chosen_checkpoint, plan.work_dir(name))))
    for name in plan.controls:
        stages.append(
            _train(plan, name, "train the dense model for longer", partial(chosen_checkpoint, plan.work_dir("dense")))
        )
    for name in ("dense", *plan.controls):
        stages.append(_test(plan, name, name, f"the {title(name)}", partial(chosen_checkpoint, plan.work_dir(name))))
    for name in plan.policies:
        stages.append(_test(plan, name, name, title(name), partial(plan.calibrated, name)))
    stages.append(
        _test(plan, "dense", "dense-pass", "the dense pass of SmartTrim's weights", partial(plan.calibrated, "smarttrim"))
    )
    return [*stages, _benchmark(plan), _visualize(plan)]


def title(name: str) -> str:
    """A policy's name in text."""
    return {
        "dense": "dense model",
        LONGER: "dense model, trained on as long as SmartTrim",
        "smarttrim": "SmartTrim",
        "local-only": "SmartTrim, local scores only",
        "random": "random dropping",
    }[name]


def read_report(plan: Plan, markers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Gathers what the stages wrote and makes the report.

    Args:
        plan: Where it lies.
        markers: Of all stages.
    """
    rows = {name: _row(plan, name, title(name), None) for name in ("dense", *plan.controls)}
    rows |= {name: _row(plan, name, title(name), plan.calibrated(name)) for name in plan.policies}
    rows["dense-pass"] = _row(plan, "dense-pass", "dense pass of SmartTrim's weights", None)
    data = Config.fromfile(plan.config("dense")).val_dataloader.dataset
    seeds = {
        "training": plan.seed,
        "benchmark's draw of pairs": plan.seed,
        "held-out training images": data.get("val_seed", 0),
    }
    if "random" in plan.policies:
        seeds["random policy"] = plan.seed
    return build_report(
        rows,
        benchmark=json.loads(plan.benchmark.read_text(encoding="utf-8")),
        speedup=plan.speedup,
        seeds=seeds,
        stages=[{key: marker[key] for key in ("name", "title", "command", "seconds")} for marker in markers],
        pictures=[plan.shown(plan.pictures / name) for name in (PATCHES, CURVES)],
        smoke=plan.smoke,
    )


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/quickstart.py``."""
    parser = argparse.ArgumentParser(
        "quickstart.py",
        description="Train a small METER on easy-VQA, prune it with SmartTrim, test both, compare their clocks, and write "
        "report.md and report.json. If interrupted, the same command goes on.",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the trainings and the random policy (default: %(default)s)")
    parser.add_argument("--work-dir", metavar="DIR", help="folder of everything (default: work_dirs/quickstart)")
    parser.add_argument("--skip-baselines", action="store_true", help="leave out the local-only and the random policy")
    parser.add_argument(
        "--longer",
        action="store_true",
        help="also train the dense model on, for as long as SmartTrim is fine-tuned: what longer training alone is worth",
    )
    parser.add_argument("--smoke", action="store_true", help="a few iterations on a few images, to see that everything runs")
    parser.add_argument("--configs", metavar="DIR", help="folder of quickstart_*.py (default: configs/meter)")
    return parser


def main(argv: Sequence[str] | None = None, tools: Path = ROOT / "tools", root: Path = ROOT) -> int:
    """What ``tools/quickstart.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.
        tools: Folder of the tools.
        root: Folder that commands run in.

    Returns:
        Exit status: 0, 1 after a failure, 130 after an interrupt.
    """
    args = parser().parse_args(argv)
    rerun = shlex.join(["python", "tools/quickstart.py", *(sys.argv[1:] if argv is None else argv)])
    name = "quickstart" + ("-smoke" if args.smoke else "") + (f"-seed{args.seed}" if args.seed else "")
    plan = Plan(
        folder=Path(args.work_dir).absolute() if args.work_dir else root / "work_dirs" / name,
        configs=Path(args.configs).absolute() if args.configs else root / "configs" / "meter",
        root=root,
        seed=args.seed,
        speedup=SPEEDUP,
        policies=("smarttrim",) if args.skip_baselines else ("smarttrim", *BASELINES),
        controls=(LONGER,) if args.longer else (),
        smoke=args.smoke,
    )
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a running tool is ended too
    try:
        chain = Chain(plan_stages(plan), folder=plan.folder, tools=tools, root=root, rerun=rerun)
        report = read_report(plan, chain.run())
    except KeyboardInterrupt:
        print(f"\ninterrupted; to go on: {rerun}", file=sys.stderr)
        return 130
    except (StageError, FileNotFoundError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    write_atomically(plan.folder / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    write_atomically(plan.folder / "report.md", render(report).encode())
    print(f"\n{render_console(report)}\nreport: {plan.shown(plan.folder / 'report.md')} (and report.json)")
    return 0


def _train(plan: Plan, name: str, what: str, start: Callable[[], Path] | None) -> Stage:
    options = [f"randomness.seed={plan.seed}", *plan.policy_options(name), *(SMOKE_TRAIN if plan.smoke else ())]
    return _stages(plan, name).train(
        f"train_{name}",
        what,
        work_dir=plan.work_dir(name),
        settings=comparable_settings(_read(plan.config(name))),
        options=lambda: options,
        start=start,
    )


def _calibrate(plan: Plan, name: str, new: str, what: str, source: Callable[[], Path]) -> Stage:
    return _stages(plan, name).calibrate(
        f"calibrate_{new}",
        what,
        source=source,
        out=plan.calibrated(new),
        speedup=plan.speedup,
        margin=MARGIN,
        settings=_settings(plan, name),
        options=[*plan.policy_options(name), *(SMOKE_VAL if plan.smoke else ())],
    )


def _test(plan: Plan, config: str, name: str, what: str, source: Callable[[], Path]) -> Stage:
    return _stages(plan, config).test(
        f"test_{name}",
        f"test {what}",
        source=source,
        folder=plan.tested(name),
        settings=_settings(plan, config),
        options=[*plan.policy_options(config), *(SMOKE_TEST if plan.smoke else ())],
    )


def _benchmark(plan: Plan) -> Stage:
    return _stages(plan, "smarttrim").benchmark(
        "benchmark",
        "compare the clocks of the dense and the trimmed model",
        source=partial(plan.calibrated, "smarttrim"),
        out=plan.benchmark,
        batch_sizes=BATCH_SIZES,
        threads=_thread_counts(),
        seed=plan.seed,
        settings=_settings(plan, "smarttrim"),
        rounds=2 if plan.smoke else None,
        options=SMOKE_TEST if plan.smoke else (),
    )


def _thread_counts() -> list[int]:
    """Torch's own choice first, then a single thread: what a small model gains depends on it."""
    count = torch.get_num_threads()
    return [count] if count == 1 or torch.cuda.is_available() else [count, 1]


def _visualize(plan: Plan) -> Stage:
    source = plan.calibrated("smarttrim")
    runs = {"dense training": "dense", "SmartTrim fine-tuning": "smarttrim"}

    def arguments() -> list[str]:
        return [
            plan.shown(plan.config("smarttrim")), plan.shown(source), "--out", plan.shown(plan.pictures), "--curves",
            *(f"{what}={plan.shown(plan.work_dir(name))}" for what, name in runs.items()),
            *(["--num", "2", "--cfg-options", *SMOKE_TEST] if plan.smoke else []),
        ]  # fmt: skip

    files = (plan.pictures / PATCHES, plan.pictures / CURVES)
    settings = _settings(plan, "smarttrim")
    return Stage("pictures", "draw the pictures", "visualize.py", arguments, settings, lambda: [source], files)


def _stages(plan: Plan, config: str) -> ToolStages:
    return ToolStages(plan.config(config), plan.root)


def _settings(plan: Plan, config: str) -> dict[str, Any]:
    return json.loads(json.dumps(_read(plan.config(config)).to_dict(), default=str))


def _read(path: Path) -> Config:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config; the quickstart needs quickstart_dense.py and its variants there")
    return Config.fromfile(path)


def _row(plan: Plan, name: str, what: str, calibrated: Path | None) -> Row:
    folder = plan.tested(name)
    answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    found = None
    if calibrated is not None:
        note = json.loads((calibrated.with_suffix("") / "calibration.json").read_text(encoding="utf-8"))
        found = {"knob": note["knob"], "value": note["after"]["knob"], "held_out_speedup": note["after"]["speedup"]}
    return Row(
        title=what,
        config=answers["config"],
        checkpoint=answers["checkpoint"],
        predictions=answers["predictions"],
        compute=json.loads((folder / "compute.json").read_text(encoding="utf-8")),
        calibration=found,
    )
