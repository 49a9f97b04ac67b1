"""Saving so that a run killed at any moment loses nothing that it had saved."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from smarttrim_mm.registry import HOOKS


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` for which a kill is harmless: it takes the same arguments.

    A file appears whole or not at all, and an older checkpoint (or the best so far) is removed only after its successor is
    on the disk; mmengine does both the other way round. It also asks ``SafeStateHook`` for the state of every rank.

    Raises:
        ValueError: Before training, if iterations are saved amid gradients that are being accumulated: a checkpoint does not
            hold these, so that a resumed training would differ.
    """

    backend_args: dict | None
    file_backend: Any

    def before_train(self, runner: Runner) -> None:
        counts = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
        if not self.by_epoch and self.interval > 0 and self.interval % counts:
            raise ValueError(
                f"default_hooks.checkpoint.interval is {self.interval}; expected a multiple of optim_wrapper."
                f"accumulative_counts={counts}, as a training resumed amid accumulated gradients would lose them. Set the "
                f"interval to {-(-self.interval // counts) * counts}, for instance"
            )
        if self.backend_args is None and "://" not in str(self.out_dir or runner.work_dir):
            self.backend_args = {"backend": "atomic_local"}
        super().before_train(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        runner.call_hook("collect_state")
        with self._removals_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if self.save_best:
            runner.call_hook("collect_state")
            with self._removals_last():
                super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removals_last(self) -> Iterator[None]:
        """Puts off removals until the body has succeeded; within itself it does nothing."""
        backend = self.file_backend
        if isinstance(backend, _LateRemovals):
            yield
            return
        self.file_backend = late = _LateRemovals(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        best = getattr(self, "best_ckpt_path_dict", {}).values()
        current = {self.last_ckpt, getattr(self, "best_ckpt_path", None), *best}
        for remove, path in late.removals:
            if path not in current:  # a resumed run may write the same name again
                remove(path)


class _LateRemovals:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.removals: list[tuple[Callable[[str], None], str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.removals.append((self.backend.remove, path))

    def rmtree(self, path: str) -> None:
        self.removals.append((self.backend.rmtree, path))
