"""Real trainings whose gates are driven to collapse, and what the log says of them."""

from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from smarttrim_mm import cli
from smarttrim_mm.hooks.gate_collapse import GateCollapseHook
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM

ROOT = Path(__file__).parents[2]
_CONFIG = """
_base_ = {base!r}
train_cfg = dict(max_iters={iterations}, val_interval=100)
param_scheduler = []
train_dataloader = dict(batch_size=2, dataset=dict(num_images=8))
val_dataloader = dict(batch_size=2, dataset=dict(num_images=3))
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=6), gates=dict(interval=1, window=3))
custom_hooks = [dict(type="CurriculumHook", schedule="constant"), dict(type="NoiseHook", start=0.0, end=0.0)]
"""
# a huge weight of the budget and a high learning rate overshoot the target, from gates that begin anywhere
_TO_OFF = """
model = dict(policy=dict(stable_init=False), budget=dict(weight=1e6, speedup=8.0), distillation=None)
optim_wrapper = dict(optimizer=dict(lr=0.05))
"""
# the budget has no weight, so that gates stay as the stable initialisation opened them
_TO_ON = "model = dict(budget=dict(weight=0.0))"


@pytest.fixture
def train(tmp_path):
    def run(more: str, name: str = "run", *options: str, iterations: int = 12) -> tuple[Runner, str]:
        config = tmp_path / f"{tmp_path.name}_{name}.py"
        base = str(ROOT / "configs/meter/quickstart_smarttrim.py")
        config.write_text(_CONFIG.format(base=base, iterations=iterations) + more)
        work_dir = tmp_path / name
        runner = cli.train([str(config), "--work-dir", str(work_dir), "--no-validate", *options])
        return runner, "".join(path.read_text() for path in sorted(work_dir.glob("*/*.log")))

    return run


def warnings_of(log: str) -> list[str]:
    return [line for line in log.splitlines() if "WARNING" in line and ("gate" in line or "Gates" in line)]


def test_gates_driven_to_all_off(train):
    runner, log = train(_TO_OFF)
    told = warnings_of(log)
    first = next(line for line in told if "all off" in line)
    assert "kept/image.2/image 0.000" in first and "nothing but protected tokens" in first
    assert any("all off" in line and "heads/image.2/image.self 0.000" in line for line in told)
    assert "policy.stable_init=True" in first and "CurriculumHook" in first and "lambda_cost" in first
    assert "have collapsed at the end. all off: " in told[-1]
    assert sum("kept/image.2/image" in line for line in told[:-1]) == 1  # told once
    assert not runner.model.listeners


def test_gates_that_stay_all_on(train):
    _, log = train(_TO_ON, iterations=5)
    [told, summary] = warnings_of(log)
    assert "Iteration 3: 4 gates are all on (over" in told and "kept/image.0/image 1.000 +- 0.0000" in told
    assert "higher rate (optim_wrapper" in told
    assert "Gates: of 4 that were watched, 4 have collapsed at the end. all on: " in summary


def test_a_resumed_run_neither_repeats_nor_forgets(train, tmp_path):
    runner, _ = train(_TO_ON, "first", iterations=6)
    known = runner.message_hub.get_info("gate_collapse")
    assert {gate["collapse"] for gate in known.values()} == {"all on"}
    _, log = train(_TO_ON, "second", "--resume", str(tmp_path / "first" / "iter_6.pth"), iterations=10)
    [summary] = warnings_of(log)
    assert "4 have collapsed at the end" in summary


def test_healthy_gates(train):
    """Gates that begin anywhere and are not trained decide by the input; targets that they meet ask for nothing more."""
    more = "model = dict(policy=dict(stable_init=False), budget=dict(weight=0.0, speedup=1.01))\ncustom_hooks = []\n"
    _, log = train(more, iterations=4)
    assert not warnings_of(log) and "Gates: 4 were watched, none has collapsed at the end." in log


def test_a_policy_that_trims_nothing_is_left_alone(toy_run, make_model, make_inputs):
    toy_run()  # a model without listeners
    model = make_model().train()
    hook = GateCollapseHook()
    model.listeners.append(hook._listen)
    hook._due = True
    model.loss(make_inputs(model))
    assert hook._shares.on_host() == {}


def watched(model, inputs, cfg, monkeypatch):
    """What the hook says of three passes of a model."""
    runner = Runner.from_cfg(cfg)
    runner.model = model
    hook, told = GateCollapseHook(interval=1, window=2), []
    monkeypatch.setattr("smarttrim_mm.hooks.gate_collapse.print_log", lambda message, **_: told.append(message))
    hook.before_train(runner)
    for number in range(3):
        runner.train_loop._iter = number
        hook.before_train_iter(runner, number)
        model.loss(inputs)
        hook.after_train_iter(runner, number)
    return told


def test_a_policy_whose_knob_alone_sets_how_many_stay_has_not_collapsed(toy_config, make_model, make_inputs, monkeypatch):
    model = make_model({"type": "Random", "streams": ["image"], "keep_ratio": 0.6}).train()
    assert watched(model, make_inputs(model), toy_config(), monkeypatch) == []


def test_thresholds_that_nothing_reaches(toy_config, make_model, make_inputs, monkeypatch):
    """A gate between attention and MLP: no attention received is 1."""
    model = make_model({"type": "LTP", "threshold": 1.0, "streams": ["image"], "layers": {"image": [2], "fusion": []}}).train()
    told = watched(model, make_inputs(model), toy_config(), monkeypatch)
    assert len(told) == 1 and "1 gate is all off (over" in told[0] and "within/image.2/image 0.000 +- 0.0000" in told[0]


def test_the_same_share_for_every_input(toy_config, make_model, make_inputs, monkeypatch):
    """A gate that no longer looks at its input: its logits are made the same for every token."""
    model = make_model({"type": "SmartTrim", "token_trimmer": None, "noise": 0.0}).train()
    assert isinstance(model, TrimmedVLM)
    with torch.no_grad():
        for trimmer in model.policy.head_trimmers.values():
            for parameter in trimmer.parameters():
                parameter.zero_()
            list(trimmer.parameters())[-1].copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    told = watched(model, make_inputs(model), toy_config(), monkeypatch)
    assert len(told) == 1 and told[0].startswith("Iteration 2: 13 gates are the same for every input (over")
    assert "heads/text.0/text.self 0.500 +- 0.0000" in told[0] and "NoiseHook" in told[0] and "and 7 more" in told[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": 0}, "interval of GateCollapseHook is 0; expected at least 1"),
        ({"window": 0}, "window of GateCollapseHook is 0"),
        ({"edge": 0.3}, "edge of GateCollapseHook is 0.3; expected a share between 0 and 0.25"),
        ({"least_spread": -1.0}, "least_spread of GateCollapseHook is -1.0; expected a number >= 0"),
        ({"slack": -0.1}, "slack of GateCollapseHook is -0.1"),
    ],
)
def test_impossible_values(changes, message):
    with pytest.raises(ValueError, match=message):
        GateCollapseHook(**changes)
