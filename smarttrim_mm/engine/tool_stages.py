"""Stages that every chain of experiments has: a training, a calibration, a test, and a comparison of clocks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smarttrim_mm.engine.stages import Stage, StageError, shown_path

Source = Callable[[], Path]  # a checkpoint, once the stages before are done
SMOKE_TRAIN = (
    "param_scheduler=None", "train_cfg.max_iters=4", "train_cfg.val_interval=4", "train_dataloader.batch_size=4",
    "default_hooks.checkpoint.interval=2", "default_hooks.logger.interval=1", "val_dataloader.dataset.num_images=8",
)  # fmt: skip
SMOKE_VAL = ("val_dataloader.dataset.num_images=8",)
SMOKE_TEST = ("test_dataloader.dataset.num_images=8",)


@dataclass(frozen=True)
class ToolStages:
    """Makes stages of one config.

    Attributes:
        config: The config file.
        root: Folder that commands run in.
    """

    config: Path
    root: Path

    def train(
        self,
        name: str,
        title: str,
        *,
        work_dir: Path,
        settings: Mapping[str, Any],
        options: Callable[[], Sequence[str]],
        start: Source | None,
    ) -> Stage:
        """A training.

        Args:
            name: Of the stage.
            title: What it does, for the console.
            work_dir: Folder of checkpoints and logs.
            settings: What in the config its result depends on.
            options: Gives changes of the config, ``a.b=1`` each.
            start: The checkpoint whose weights it starts from; None: the config's own.
        """

        def arguments() -> list[str]:
            loaded = [] if start is None else [f"load_from={self._shown(start())}"]
            changes = [*options(), *loaded]
            given = ["--cfg-options", *changes] if changes else []
            return [self._shown(self.config), "--work-dir", self._shown(work_dir), *given]

        return Stage(
            name=name,
            title=title,
            tool="train.py",
            arguments=arguments,
            settings=settings,
            inputs=lambda: [] if start is None else [start()],
            outputs=(work_dir / "last_checkpoint",),
            training=work_dir,
        )

    def calibrate(
        self,
        name: str,
        title: str,
        *,
        source: Source,
        out: Path,
        speedup: float,
        margin: float,
        settings: Mapping[str, Any],
        options: Sequence[str] = (),
    ) -> Stage:
        """A calibration on the config's ``val`` data.

        Args:
            name: Of the stage.
            title: What it does, for the console.
            source: The checkpoint.
            out: The new one; the passes are noted in the folder of that name, without ``.pth``.
            speedup: To calibrate to.
            margin: Share above it that is aimed at.
            settings: What in the config its result depends on.
            options: Changes of the config, ``a.b=1`` each.
        """
        folder = out.with_suffix("")

        def arguments() -> list[str]:
            return [
                self._shown(self.config), self._shown(source()), "--speedup", f"{speedup:g}", "--margin", f"{margin:g}",
                "--out", self._shown(out), "--work-dir", self._shown(folder),
                *(["--cfg-options", *options] if options else []),
            ]  # fmt: skip

        return Stage(name, title, "calibrate.py", arguments, settings, lambda: [source()], (out, folder / "calibration.json"))

    def slice(self, name: str, title: str, *, source: Source, out: Path, settings: Mapping[str, Any]) -> Stage:
        """Takes away for good what a search chose.

        Args:
            name: Of the stage.
            title: What it does, for the console.
            source: The checkpoint of the search's end.
            out: The smaller one.
            settings: What in the config its result depends on.
        """

        def arguments() -> list[str]:
            return [self._shown(self.config), self._shown(source()), "--out", self._shown(out)]

        return Stage(name, title, "slice.py", arguments, settings, lambda: [source()], (out,))

    def test(
        self,
        name: str,
        title: str,
        *,
        source: Source,
        folder: Path,
        settings: Mapping[str, Any],
        options: Sequence[str] = (),
    ) -> Stage:
        """A test on the whole test split.

        Args:
            name: Of the stage.
            title: What it does, for the console.
            source: The checkpoint.
            folder: Gets ``answers.json`` and ``compute.json``.
            settings: What in the config its result depends on.
            options: Changes of the config, ``a.b=1`` each.
        """
        answers, compute = folder / "answers.json", folder / "compute.json"

        def arguments() -> list[str]:
            return [
                self._shown(self.config), self._shown(source()), "--work-dir", self._shown(folder),
                "--out", self._shown(answers), "--speedup-report", self._shown(compute),
                *(["--cfg-options", *options] if options else []),
            ]  # fmt: skip

        return Stage(name, title, "test.py", arguments, settings, lambda: [source()], (answers, compute))

    def benchmark(
        self,
        name: str,
        title: str,
        *,
        source: Source,
        out: Path,
        batch_sizes: Sequence[int],
        threads: Sequence[int],
        seed: int,
        settings: Mapping[str, Any],
        rounds: int | None = None,
        options: Sequence[str] = (),
    ) -> Stage:
        """A comparison of clocks with the host's dense forward.

        Args:
            name: Of the stage.
            title: What it does, for the console.
            source: The checkpoint.
            out: The JSON file that is written.
            batch_sizes: Pairs of a batch, one after the other.
            threads: Threads of torch, likewise.
            seed: Of the draw of pairs.
            settings: What in the config its result depends on.
            rounds: Timed batches of each; None: the tool's own number.
            options: Changes of the config, ``a.b=1`` each.
        """

        def arguments() -> list[str]:
            return [
                self._shown(self.config), self._shown(source()), "--batch-sizes", *map(str, batch_sizes),
                "--threads", *map(str, threads), "--seed", str(seed), "--out", self._shown(out),
                *(["--rounds", str(rounds)] if rounds is not None else []),
                *(["--cfg-options", *options] if options else []),
            ]  # fmt: skip

        return Stage(name, title, "benchmark.py", arguments, settings, lambda: [source()], (out,))

    def _shown(self, path: Path) -> str:
        return shown_path(path, self.root)


def chosen_checkpoint(work_dir: Path) -> Path:
    """The checkpoint of a training: the best on held-out images if the config saved one, else the last.

    Raises:
        StageError: If there is none.
    """
    best = sorted(work_dir.glob("best_*.pth"), key=lambda path: path.stat().st_mtime)
    if best:
        return best[-1]
    pointer = work_dir / "last_checkpoint"
    if not pointer.is_file():
        raise StageError(f"{work_dir} holds no checkpoint; remove the folder to train again")
    return work_dir / Path(pointer.read_text(encoding="utf-8").strip()).name
