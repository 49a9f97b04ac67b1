"""A chain of commands that can be interrupted anywhere: what is finished is not redone, a training goes on.

Each finished stage leaves a marker with the fingerprint of its command, its config and the content of its inputs. A stage whose
fingerprint has changed since is run again; a training is then refused, so that nothing is lost.
"""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from smarttrim_mm.engine.progress import Progress, clock
from smarttrim_mm.utils.checkpoint_io import write_atomically
from smarttrim_mm.utils.run_guard import differing_settings
from smarttrim_mm.version import __version__

_TAIL = 30  # lines of a failed stage's log
_SHOWN = 6  # differing settings
_PROGRESS = re.compile(r"\b(?:Iter|Epoch)\((train|val|test)\) +(?:\[\d+\]\S* *)?\[ *(\d+)/(\d+)\](.*)")
_LABELS = {"train": "training", "val": "validating", "test": "testing"}
_SCALAR = re.compile(r"(\S+): (\S+)")
_SHOWN_SCALARS = ("loss", "accuracy", "speedup")  # by the last part of their names


class StageError(RuntimeError):
    """A stage failed, or may not be run."""


class StageEnded(RuntimeError):
    """A stage was ended from outside; it can be gone on with."""


@dataclass(frozen=True)
class Stage:
    """One command of the chain.

    Attributes:
        name: Short name, also of its marker and log.
        title: What it does, for the console.
        tool: File name of the tool.
        arguments: Gives the tool's arguments when the stages before are done.
        settings: Everything in the config that the result depends on, by name.
        inputs: Gives the files that the result depends on.
        outputs: Files that exist when it is done.
        training: The work dir of a training, which ``--resume`` continues; None for other tools.
    """

    name: str
    title: str
    tool: str
    arguments: Callable[[], Sequence[str]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[], Sequence[Path]] = tuple
    outputs: tuple[Path, ...] = ()
    training: Path | None = None


class Chain:
    """Runs stages one after the other.

    Args:
        stages: The stages.
        folder: Where markers (``stages/``) and logs (``logs/``) go.
        tools: Folder of the tools.
        root: Folder that the commands run in, and that their paths refer to.
        rerun: The command that goes on after a failure, for its message.
        out: Console.
        environment: Variables that the commands see beside those of this process.
        on_done: Told of each stage that this call has finished, with its marker.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        folder: Path,
        tools: Path,
        root: Path,
        rerun: str,
        out: TextIO | None = None,
        environment: Mapping[str, str] | None = None,
        on_done: Callable[[Stage, dict[str, Any]], None] = lambda *_: None,
    ) -> None:
        self.stages = tuple(stages)
        self.folder = folder
        self.tools = tools
        self.root = root
        self.rerun = rerun
        self.out = out or sys.stdout
        self.environment = dict(environment or {})
        self.on_done = on_done
        self._process: subprocess.Popen | None = None
        self._ended = False

    def run(self) -> list[dict[str, Any]]:
        """Runs what is not finished.

        Returns:
            The markers of all stages: ``name``, ``title``, ``command``, ``seconds``.

        Raises:
            StageError: If a stage fails, or a training's work dir holds another run.
        """
        begin = time.monotonic()
        markers = []
        for number, stage in enumerate(self.stages, start=1):
            heading = f"[stage {number}/{len(self.stages)}, {clock(time.monotonic() - begin)} elapsed] {stage.title}"
            marker = self.marker(stage)
            print_ = fingerprint(stage, self._command(stage))
            if _is_done(stage, marker, print_):
                self._say(f"{heading}: done before ({clock(marker['seconds'])})")
            else:
                self._say(heading)
                marker = self._run_stage(stage, marker, print_)
                self.on_done(stage, marker)
            markers.append(marker)
        return markers

    def pending(self) -> tuple[Stage, ...]:
        """The stages that :meth:`run` would run: from the first that is not finished on, as the others build on it."""
        for number, stage in enumerate(self.stages):
            try:
                print_ = fingerprint(stage, self._command(stage))
            except (StageError, FileNotFoundError):  # what it starts from is not there yet
                return self.stages[number:]
            if not _is_done(stage, self.marker(stage), print_):
                return self.stages[number:]
        return ()

    def end(self) -> None:
        """Ends the running tool, from another thread; :meth:`run` then raises :class:`StageEnded`."""
        self._ended = True
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()

    def marker(self, stage: Stage) -> dict[str, Any]:
        """What is noted of a stage; nothing, if it was never begun, or what was noted is damaged."""
        path = self._marker_path(stage)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # a damaged marker is as good as none
            return {}
        return content if isinstance(content, dict) else {}

    def log(self, stage: Stage) -> Path:
        """Where a stage's output goes."""
        return self.folder / "logs" / f"{stage.name}.log"

    def command(self, stage: Stage) -> str:
        """The command of a stage, to be typed."""
        return shlex.join(["python", *self._command(stage)])

    def _run_stage(self, stage: Stage, before: dict[str, Any], print_: str) -> dict[str, Any]:
        command = self._command(stage)
        begun = before.get("fingerprint") == print_ and before.get("status") == "started"
        trained = stage.training is not None and any(stage.training.glob("*.pth"))
        if trained and before.get("fingerprint") != print_:
            raise StageError(self._refusal(stage, before))
        earlier = float(before.get("seconds", 0.0)) if begun else 0.0
        marker: dict[str, Any] = {
            "name": stage.name,
            "title": stage.title,
            "command": self.command(stage),
            "fingerprint": print_,
            "status": "started",
            "seconds": earlier,
            "settings": dict(stage.settings),
        }
        self._save(stage, marker)
        began = time.monotonic()
        try:
            code = self._execute(stage, [*command, *(["--resume"] if trained else [])])
        finally:
            marker["seconds"] = earlier + time.monotonic() - began
            self._save(stage, marker)
        if self._ended:
            raise StageEnded(f"{stage.name} was ended")
        if code != 0:
            raise StageError(self._failure(stage, f"exit code {code}"))
        missing = [str(path) for path in stage.outputs if not path.exists()]
        if missing:
            raise StageError(self._failure(stage, f"it ended well but left no {', '.join(missing)}"))
        marker["status"] = "done"
        self._save(stage, marker)
        return marker

    def _command(self, stage: Stage) -> list[str]:
        return [shown_path(self.tools / stage.tool, self.root), *stage.arguments()]

    def _execute(self, stage: Stage, command: Sequence[str]) -> int:
        if self._ended:
            raise StageEnded(f"ended before {stage.name}")
        log = self.log(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        paths = [str(self.root), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, **self.environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths)}
        self._process = process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.root, env=environment
        )
        assert process.stdout is not None
        show = ProgressBars(self.out) if stage.tool in ("train.py", "test.py") else _Everything(self.out)
        try:
            with log.open("ab") as file:
                file.write(f"$ {shlex.join(['python', *command])}\n".encode())
                while chunk := os.read(process.stdout.fileno(), 65536):
                    file.write(chunk)
                    file.flush()
                    show(chunk.decode(errors="replace"))
            return process.wait()
        finally:
            show.close()
            if process.poll() is None:
                process.terminate()
                process.wait()

    def _refusal(self, stage: Stage, before: dict[str, Any]) -> str:
        lines = differing_settings(before.get("settings", {}), stage.settings)[:_SHOWN]
        if not before:
            why = "it was not begun by this chain"
        elif lines:
            why = f"settings differ: {'; '.join(lines)}"
        else:
            same = before.get("command") == self.command(stage)
            why = "its inputs differ" if same else f"its command was {before.get('command')}"
        return (
            f"{stage.training} holds another run of stage {stage.name!r} ({why}). Nothing was changed. Give another "
            "--work-dir, or remove that folder to train it again"
        )

    def _failure(self, stage: Stage, reason: str) -> str:
        text = self.log(stage).read_text(encoding="utf-8", errors="replace") if self.log(stage).is_file() else ""
        tail = "\n".join(f"  | {line.rsplit(chr(13), 1)[-1]}" for line in text.splitlines()[-_TAIL:])
        number = self.stages.index(stage) + 1
        return (
            f"stage {number}/{len(self.stages)} ({stage.name}: {stage.title}) failed: {reason}. The end of "
            f"{shown_path(self.log(stage), self.root)}:\n{tail}\n"
            f"This stage alone: {self.command(stage)}\n"
            f"To go on from here, finished stages being kept: {self.rerun}"
        )

    def _save(self, stage: Stage, marker: dict[str, Any]) -> None:
        write_atomically(self._marker_path(stage), (json.dumps(marker, indent=1) + "\n").encode())

    def _marker_path(self, stage: Stage) -> Path:
        return self.folder / "stages" / f"{stage.name}.json"

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)


def fingerprint(stage: Stage, command: Sequence[str]) -> str:
    """A short name for a stage's command, settings and the content of its inputs; equal for equal ones."""
    inputs = {str(path): file_digest(path) if path.is_file() else None for path in stage.inputs()}
    content = [__version__, list(command), dict(stage.settings), inputs]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shown_path(path: Path, root: Path) -> str:
    """A path as commands name it: relative to the root where it lies inside."""
    path, root = path.absolute(), root.absolute()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _is_done(stage: Stage, marker: Mapping[str, Any], print_: str) -> bool:
    done = marker.get("status") == "done" and marker.get("fingerprint") == print_
    return done and all(path.exists() for path in stage.outputs)


class _Everything:
    """Passes a tool's output on as it comes."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def __call__(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()

    def close(self) -> None:
        """Nothing is left to end."""


class ProgressBars:
    """Turns the lines of mmengine's log that show progress into bars; everything is in the log.

    Args:
        out: Console.
    """

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.rest = ""
        self.mode = ""
        self.note = ""
        self.bar: Progress | None = None

    def __call__(self, text: str) -> None:
        """Takes the next piece of the log."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            found = _PROGRESS.search(line)
            if found is not None:
                mode, done, total, scalars = found.groups()
                self._show(mode, int(done), int(total), _note(scalars))

    def _show(self, mode: str, done: int, total: int, note: str) -> None:
        if self.bar is None or mode != self.mode:
            self.close()
            # the time of the steps before its first line is not known
            self.bar, self.mode = Progress(f"  {_LABELS[mode]}", total, file=self.out, done=done), mode
        self.note = note
        self.bar.reach(done, note)
        if done == total:
            self.close()

    def close(self) -> None:
        """Ends the line that is being drawn."""
        if self.bar is not None:
            self.bar.close(self.note)
            self.bar = None


def _note(scalars: str) -> str:
    values = {name.rpartition("/")[2]: value for name, value in _SCALAR.findall(scalars)}
    return "  ".join(f"{name} {values[name]}" for name in _SHOWN_SCALARS if name in values)
