"""Warns while a training runs when gates stop deciding, and names what helps."""

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from smarttrim_mm.layers.gate_shares import GateShares, gate_shares
from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.ops.collapse import OFF, ON, SAME, collapse_of
from smarttrim_mm.registry import HOOKS
from smarttrim_mm.utils.launch import unwrapped_model

_STATE = "gate_collapse"
_SHOWN = 6
_MEANING = {
    OFF: "nothing but protected tokens, or no head, came through for any input",
    ON: "everything came through, although the target asks for less than is kept",
    SAME: "the same share came through for every input of a batch",
}
_REMEDY = {
    OFF: "begin with everything kept (policy.stable_init=True), lower the target more slowly (a later end of CurriculumHook), "
    "give the budget less weight (model.budget.weight, lambda_cost) or a milder target, lower the rate of the trimmers "
    "(optim_wrapper.paramwise_cfg.custom_keys['policy.'].lr_mult), or keep a few tokens in any case (policy.min_tokens)",
    ON: "give the trimmers a higher rate (optim_wrapper.paramwise_cfg.custom_keys['policy.'].lr_mult), the budget more weight "
    "(model.budget.weight, lambda_cost), or the gates softer gradients (TemperatureHook from 2 or more to 1), start from a "
    "lower keep_bias of the trimmers, or end the curriculum earlier",
    SAME: "soften the gates' gradients (a higher policy.temperature, or TemperatureHook), keep noise for longer (a later until "
    "of NoiseHook), lower the target more slowly, or leave trimmers out where they decide nothing (policy.token_layers, "
    "policy.head_layers)",
}


@HOOKS.register_module()
class GateCollapseHook(Hook):
    """Watches what the trimmed places let through, and warns once for each gate that has collapsed.

    A gate is all off if it leaves protected tokens only, or no head; all on if it lets everything through although more is
    kept than the budget's target asks for; or the same for every input if its share no longer differs between the instances
    of a batch. A gate's share is of what came to it, so that one gate that drops everything does not accuse those behind it.
    Where a knob alone sets how many tokens stay (``Policy.counts_fixed``), inputs are meant to keep the same, and that is none.
    The log says when a gate has recovered, and at the end of the training which have not. Findings are saved with
    checkpoints, so that a resumed run neither repeats nor forgets them. Every threshold is ours.

    It does nothing where the policy cuts no tokens and no heads. In between two looks it costs nothing; a look reads the
    device once.

    Args:
        interval: Iterations from one look to the next.
        window: Looks whose mean is judged; a gate is not judged before.
        edge: Share below which a gate is all off, and above 1 minus which it is all on; to recover takes twice that.
        least_spread: Standard deviation of a share over a batch below which decisions are the same; likewise.
        slack: How far above its target the kept share may lie, as it does while a curriculum moves the target: gates that are
            all on are a fault where it lies further in every look of the window.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self, interval: int = 10, window: int = 5, edge: float = 0.01, least_spread: float = 1e-3, slack: float = 0.1
    ) -> None:
        for name, value in (("interval", interval), ("window", window)):
            if value < 1:
                raise ValueError(f"{name} of GateCollapseHook is {value}; expected at least 1")
        if not 0 < edge < 0.25:
            raise ValueError(f"edge of GateCollapseHook is {edge}; expected a share between 0 and 0.25")
        for name, number in (("least_spread", least_spread), ("slack", slack)):
            if number < 0:
                raise ValueError(f"{name} of GateCollapseHook is {number}; expected a number >= 0")
        self.interval = interval
        self.window = window
        self.edge = edge
        self.least_spread = least_spread
        self.slack = slack
        self._due = False
        self._shares: GateShares | None = None

    def before_train(self, runner: Runner) -> None:
        listeners = getattr(unwrapped_model(runner), "listeners", None)
        if listeners is not None and self._listen not in listeners:
            listeners.append(self._listen)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._due = self.every_n_train_iters(runner, self.interval)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None) -> None:
        measured, self._shares = self._shares, None
        shares = {} if measured is None else measured.on_host()
        if not shares:
            return
        state = _state(runner)
        model: Any = unwrapped_model(runner)
        missed = _missed(runner, shares.keys() | state.keys(), self.slack)
        found: dict[str, list[str]] = defaultdict(list)
        for place, (mean, spread, instances) in shares.items():
            gate = state.setdefault(place, {"means": [], "spreads": [], "missed": [], "collapse": None})
            gate["means"] = [*gate["means"], mean][-self.window :]
            gate["spreads"] = [*gate["spreads"], *([spread] if instances > 1 else [])][-self.window :]
            gate["missed"] = [*gate["missed"], missed[place.split("/")[0]]][-self.window :]
            if len(gate["means"]) < self.window:
                continue
            known = gate["collapse"]
            gate["collapse"] = collapse_of(
                gate["means"],
                gate["spreads"],
                known,
                edge=self.edge,
                least_spread=0.0 if model.policy.counts_fixed else self.least_spread,
                missed=all(gate["missed"]),
            )
            if gate["collapse"] not in (None, known):
                found[gate["collapse"]].append(place)
            elif known is not None and gate["collapse"] is None:
                found["recovered"].append(place)
        runner.message_hub.update_info(_STATE, state)
        for collapse, places in found.items():
            self._tell(collapse, {place: state[place] for place in places}, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        listeners = getattr(unwrapped_model(runner), "listeners", [])
        if self._listen in listeners:
            listeners.remove(self._listen)
        state = _state(runner)
        collapsed = {place: gate for place, gate in state.items() if gate["collapse"] is not None}
        if not state:
            return
        if not collapsed:
            print_log(f"Gates: {len(state)} were watched, none has collapsed at the end.", logger="current")
            return
        kinds = [f"{kind}: {_listed(some)}" for kind in _REMEDY if (some := _of_kind(collapsed, kind))]
        print_log(
            f"Gates: of {len(state)} that were watched, {len(collapsed)} have collapsed at the end. {'; '.join(kinds)}",
            logger="current",
            level=logging.WARNING,
        )

    def _listen(self, record: TrimRecord) -> None:
        if self._due:
            self._shares = gate_shares(record)

    def _tell(self, collapse: str, gates: Mapping[str, Mapping], iteration: int) -> None:
        if collapse == "recovered":
            print_log(f"Iteration {iteration}: no longer collapsed: {_listed(gates)}", logger="current")
            return
        over = (self.window - 1) * self.interval + 1
        print_log(
            f"Iteration {iteration}: {len(gates)} gate{'s are' if len(gates) > 1 else ' is'} {collapse} (over the last {over} "
            f"iterations {_MEANING[collapse]}): {_listed(gates)}. What helps: {_REMEDY[collapse]}.",
            logger="current",
            level=logging.WARNING,
        )


def _state(runner: Runner) -> dict[str, dict[str, Any]]:
    """By place what it let through of late and how it has collapsed; plain data, which checkpoints keep."""
    info = runner.message_hub.runtime_info
    return dict(info.get(_STATE, {}))


def _missed(runner: Runner, places: Collection[str], slack: float) -> dict[str, bool]:
    """Whether more is kept at the places than the budget asks for, of tokens and of heads.

    It is told by what the iteration has logged, which RuntimeInfoHook has read from the device.
    """
    scalars = runner.message_hub.log_scalars
    logged = {name.removeprefix("train/"): buffer.current() for name, buffer in scalars.items() if name.startswith("train/")}
    missed = {"kept": False, "heads": False}
    if "target" in logged:  # both are dense over kept multiply-adds
        missed = dict.fromkeys(missed, 1 / logged["speedup"] > 1 / logged["target"] + slack)
    for kind, name in (("kept", "target_tokens"), ("heads", "target_heads")):
        ratios = [logged[place] for place in places if place.startswith(f"{kind}/") and place in logged]
        if name in logged and ratios:
            missed[kind] = sum(ratios) / len(ratios) > logged[name] + slack
    return {**missed, "within": missed["kept"]}  # what an attention leaves is what the layers after it are logged to have kept


def _of_kind(gates: Mapping[str, Mapping], kind: str) -> dict[str, Mapping]:
    return {place: gate for place, gate in gates.items() if gate["collapse"] == kind}


def _listed(gates: Mapping[str, Mapping]) -> str:
    shown = []
    for place, gate in list(gates.items())[:_SHOWN]:
        mean = sum(gate["means"]) / len(gate["means"])
        spread = f" +- {sum(gate['spreads']) / len(gate['spreads']):.4f}" if gate["spreads"] else ""
        shown.append(f"{place} {mean:.3f}{spread}")
    more = f" and {len(gates) - _SHOWN} more" if len(gates) > _SHOWN else ""
    return f"{', '.join(shown)}{more}"
