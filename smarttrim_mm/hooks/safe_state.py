"""Checkpoints of plain data from which training resumes exactly."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, set_random_seed

from smarttrim_mm.registry import HOOKS
from smarttrim_mm.utils.checkpoint_io import use_safe_loader
from smarttrim_mm.utils.plain_state import from_plain, to_plain
from smarttrim_mm.utils.random_state import get_random_state, set_random_state

_VALIDATED = "last_validated_iter"


@HOOKS.register_module()
class SafeStateHook(Hook):
    """Makes ``N`` iterations and ``N/2``, a resume and ``N/2`` the same, with checkpoints that never run code.

    - Loading goes through ``load_checkpoint_file``: plain data only.
    - What mmengine keeps beside weights (history buffers, numpy values) is turned into plain data when saving, and back.
    - A training starts from its seed, whatever was drawn while it was built; each rank draws noise of its own.
    - The random generators of every rank are saved, and set again right before the first new batch is drawn.
    - A validation leaves the generators as it found them, so that it does not change the training.
    - A validation that was due when a run was killed is made up for before training goes on.

    Args:
        history: Newest values of each logged scalar that a checkpoint keeps; None: all.
    """

    priority = "LOWEST"  # sees what other hooks put into a checkpoint, and validates after they are ready

    def __init__(self, history: int | None = 10_000) -> None:
        if history is not None and history < 1:
            raise ValueError(f"history is {history}; expected at least 1 value of each scalar, or None for all")
        self.history = history
        self._loaded: list[dict] | None = None  # states of all ranks, from a checkpoint
        self._own: dict | None = None  # this rank's state where it differs from the generators': validation, resuming
        self._resuming = False  # a validation before the generators were restored
        self._collected: list[dict] | None = None
        self._warned: set[str] = set()

    def before_run(self, runner: Runner) -> None:
        use_safe_loader()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        for key in ("meta", "message_hub", "param_schedulers"):
            if key in checkpoint:
                checkpoint[key] = from_plain(checkpoint[key])
        self._loaded = checkpoint.pop("random_states", None)

    def collect_state(self, runner: Runner) -> None:
        """Gathers the generators' states; ``SafeCheckpointHook`` calls it on every rank before a checkpoint is saved."""
        self._collected = all_gather_object(get_random_state() if self._own is None else self._own)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self._collected is None and get_world_size() == 1:
            self.collect_state(runner)
        if self._collected is None:
            self._warn("the random generators of the ranks are not saved: use SafeCheckpointHook to save checkpoints")
        else:
            checkpoint["random_states"] = self._collected
        self._collected = None
        dropped: list[str] = []
        for key, value in checkpoint.items():
            if key != "state_dict" and not hasattr(value, "_metadata"):  # weights are plain, and carry an attribute
                left_out = None if key == "optimizer" else dropped
                checkpoint[key] = to_plain(value, path=key, dropped=left_out, history=self.history)
        hub = checkpoint.get("message_hub")
        if hub is not None:
            known = hub["log_scalars"].keys() | hub["runtime_info"].keys()
            hub["resumed_keys"] = {key: resumed for key, resumed in hub["resumed_keys"].items() if key in known}
        for entry in dropped:
            self._warn(f"{entry} has no plain form and is left out of the checkpoints")

    def before_train(self, runner: Runner) -> None:
        states, self._loaded = self._loaded, None
        loop = runner.train_loop
        if loop.iter == 0:
            own_seed = runner.seed if runner._randomness_cfg.get("diff_rank_seed") else runner.seed + get_rank()
            set_random_seed(own_seed)
            return
        if states is None or len(states) != get_world_size():
            saved = "no random states" if states is None else f"the random states of {len(states)} processes"
            self._warn(
                f"the checkpoint holds {saved} and {get_world_size()} are running: training goes on, but not exactly as if it "
                "had never stopped"
            )
        else:
            self._own = states[get_rank()]
            if isinstance(loop, IterBasedTrainLoop):
                loop.dataloader_iterator = _ResumedBatches(loop.dataloader_iterator, loop.iter, self._restore)
        if _validation_due(runner):
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._restore()

    def before_val(self, runner: Runner) -> None:
        runner.message_hub.update_info(_VALIDATED, runner.iter)  # a checkpoint knows of it if saved as the best
        self._resuming = self._own is not None
        if not self._resuming:
            self._own = get_random_state()

    def after_val(self, runner: Runner) -> None:
        if not self._resuming:
            self._restore()

    def _restore(self) -> None:
        if self._own is not None:
            set_random_state(self._own)
            self._own = None

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            print_log(message, logger="current", level=logging.WARNING)


class _ResumedBatches:
    """The batches of a resumed run: those seen before, which the loop skips, and then the new ones.

    Args:
        batches: All batches from the first.
        seen: How many the loop skips.
        at_first_new: Called right before the first new batch is drawn.
    """

    def __init__(self, batches: Iterator, seen: int, at_first_new: Callable[[], None]) -> None:
        self.batches = batches
        self.seen = seen
        self.at_first_new = at_first_new

    def __iter__(self) -> "_ResumedBatches":
        return self

    def __next__(self) -> Any:
        if self.seen == 0:
            self.at_first_new()
        self.seen -= 1
        return next(self.batches)


def _validation_due(runner: Runner) -> bool:
    """Whether the loop would have validated right after the checkpoint it resumes from."""
    loop = runner.train_loop
    if runner.val_loop is None or runner.message_hub.runtime_info.get(_VALIDATED) == loop.iter:
        return False
    loop._decide_current_val_interval()
    if isinstance(loop, EpochBasedTrainLoop):
        done, last = loop.epoch, loop.max_epochs
    else:
        done, last = loop.iter, loop.max_iters
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == last)
