"""Runs many chains of stages, some at a time: a chain that fails is reported and does not stop the others."""

import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from smarttrim_mm.engine.progress import clock
from smarttrim_mm.engine.stages import Chain, Stage, StageEnded, StageError
from smarttrim_mm.losses.budget import UnreachableSpeedup
from smarttrim_mm.utils.checkpoint_io import write_atomically

FAILED, UNREACHABLE, LEFT_OUT = "failed", "cannot reach", "left out"
FAILURE = "failure.json"
_UNREACHABLE = re.compile(rf"^\S*{UnreachableSpeedup.__name__}: (.*)$", re.MULTILINE)
_END = 4000  # letters of a log in which its exception stands


@dataclass(frozen=True)
class Task:
    """The stages of one run.

    Attributes:
        title: For the console.
        folder: Of the run; a failure is noted there.
        stages: In their order.
        needs: Folder of the task that must be done before; None: none.
    """

    title: str
    folder: Path
    stages: tuple[Stage, ...]
    needs: Path | None = None


@dataclass(frozen=True)
class Failure:
    """Why a run is not done.

    Attributes:
        status: ``'failed'``, ``'cannot reach'`` (its budget), or ``'left out'``, as what it needs failed.
        reason: In words.
        stage: Name of the stage; empty if none was begun.
        command: That repeats it; empty if there is none.
    """

    status: str
    reason: str
    stage: str = ""
    command: str = ""


class Execution:
    """Runs tasks.

    Args:
        tools: Folder of the tools.
        root: Folder that commands run in.
        rerun: The command that goes on after a failure.
        environment: Variables that the tools see.
        out: Console.
        left: Gives the estimated seconds that the pending stages of tasks still take, one after the other.
    """

    def __init__(
        self,
        *,
        tools: Path,
        root: Path,
        rerun: str,
        environment: Mapping[str, str] | None = None,
        out: TextIO | None = None,
        left: Callable[[Sequence[tuple[Path, Stage]]], float | None] = lambda _: None,
    ) -> None:
        self.tools, self.root, self.rerun = tools, root, rerun
        self.environment = dict(environment or {})
        self.out = out or sys.stdout
        self.left = left
        self.failures: dict[Path, Failure] = {}
        self._begin = time.monotonic()
        self._jobs = 1
        self._total = self._done = 0
        self._todo: dict[tuple[Path, str], Stage] = {}
        self._lock = threading.Lock()  # of what is above: chains report from threads of their own

    def pending(self, tasks: Sequence[Task]) -> dict[Path, tuple[Stage, ...]]:
        """The stages that are not finished, by the folder of their task; tasks without any are left out."""
        found = {task.folder: self._chain(task, io.StringIO()).pending() for task in tasks}
        return {folder: stages for folder, stages in found.items() if stages}

    def run(self, tasks: Sequence[Task], jobs: int, on_run: Callable[[Task], None] = lambda _: None) -> None:
        """Runs what is not finished.

        Args:
            tasks: In the order of their turn; those that another one needs come first.
            jobs: How many run at a time.
            on_run: Told of each task that is done or has failed.
        """
        todo = self.pending(tasks)
        waiting = [task for task in tasks if task.folder in todo]
        self._todo = {(folder, stage.name): stage for folder, stages in todo.items() for stage in stages}
        self._total, self._done, self._jobs = len(self._todo), 0, jobs
        running: dict[Future, tuple[Task, Chain]] = {}
        with ThreadPoolExecutor(jobs) as pool:
            try:
                while waiting or running:
                    self._start(waiting, running, pool, jobs, on_run)
                    for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                        task, chain = running.pop(future)
                        self._finish(task, chain, future)
                        on_run(task)
            finally:
                while any(not future.done() for future in running):
                    for _, chain in running.values():
                        chain.end()
                    wait(running, timeout=0.2)

    def _start(
        self,
        waiting: list[Task],
        running: dict[Future, tuple[Task, Chain]],
        pool: ThreadPoolExecutor,
        jobs: int,
        on_run: Callable[[Task], None],
    ) -> None:
        unfinished = {task.folder for task in waiting} | {task.folder for task, _ in running.values()}
        for task in list(waiting):
            if task.needs in self.failures:
                waiting.remove(task)
                self._note(task, Failure(LEFT_OUT, "the dense model that it starts from was not made"))
                on_run(task)
            elif task.needs not in unfinished and len(running) < jobs:
                waiting.remove(task)
                (task.folder / FAILURE).unlink(missing_ok=True)
                chain = self._chain(task, self.out if jobs == 1 else io.StringIO())
                running[pool.submit(chain.run)] = task, chain

    def _finish(self, task: Task, chain: Chain, future: Future) -> None:
        error = future.exception()
        if error is None:
            return
        if isinstance(error, StageEnded) or not isinstance(error, StageError | OSError | ValueError):
            raise error
        pending = chain.pending()
        stage = pending[0] if pending else task.stages[-1]
        log = chain.log(stage)
        text = log.read_text(encoding="utf-8", errors="replace")[-_END:] if log.is_file() else ""
        found = _UNREACHABLE.search(text.rpartition("\n$ ")[2])
        try:
            command = chain.command(stage)
        except StageError:
            command = ""
        failure = Failure(*((UNREACHABLE, found[1]) if found else (FAILED, str(error))), stage.name, command)
        self._note(task, failure)

    def _note(self, task: Task, failure: Failure) -> None:
        self.failures[task.folder] = failure
        write_atomically(task.folder / FAILURE, (json.dumps(vars(failure), indent=1) + "\n").encode())
        with self._lock:
            for stage in task.stages:
                if self._todo.pop((task.folder, stage.name), None) is not None:
                    self._total -= 1
        self._say(f"{failure.status.upper()}: {task.title}: {failure.reason}")

    def _chain(self, task: Task, out: TextIO) -> Chain:
        def on_done(stage: Stage, marker: dict[str, Any]) -> None:
            with self._lock:
                self._todo.pop((task.folder, stage.name), None)
                self._done += 1
                left = self.left([(folder, stage) for (folder, _), stage in self._todo.items()])
                eta = "" if left is None else f", ETA {clock(left / self._jobs)}"
                elapsed = clock(time.monotonic() - self._begin)
                self._say(f"[{self._done}/{self._total}, {elapsed} elapsed{eta}] {stage.title}: {clock(marker['seconds'])}")

        return Chain(
            task.stages,
            folder=task.folder,
            tools=self.tools,
            root=self.root,
            rerun=self.rerun,
            out=out,
            environment=self.environment,
            on_done=on_done,
        )

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)


def read_failure(folder: Path) -> Failure | None:
    """What is noted of a run that failed; None: it did not, or the note is damaged."""
    try:
        content = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
        return Failure(**{each.name: content[each.name] for each in fields(Failure)})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
