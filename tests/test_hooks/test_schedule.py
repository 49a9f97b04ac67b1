import pytest
import torch
from mmengine.runner import Runner

from smarttrim_mm.hooks.schedule import CurriculumHook, NoiseHook, TemperatureHook


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [0.0, 0.143, 0.286, 0.429, 0.571, 0.714, 0.857, 1.0, 1.0, 1.0]),
        ({"begin": 0.2, "end": 0.6, "schedule": "step", "steps": 2}, [0, 0, 0, 0, 0.5, 0.5, 1, 1, 1, 1]),
        ({"schedule": "constant"}, [1.0] * 10),
        ({"end": 0.5, "schedule": "cosine"}, [0.0, 0.095, 0.345, 0.655, 0.905, 1, 1, 1, 1, 1]),
    ],
)
def test_curriculum_is_a_function_of_the_iteration(settings, expected):
    hook = CurriculumHook(**settings)
    assert [hook.progress(i, 10) for i in range(10)] == pytest.approx(expected, abs=5e-4)
    assert hook.progress(10, 10) == 1.0


def test_values_in_training_validation_and_after(toy_run):
    runner = toy_run()
    seen = runner.model.seen
    train = [entry[1] for entry in seen if entry[0] == "train"]
    assert train == pytest.approx([i / 6 for i in range(6)] + [1.0, 1.0])
    assert [entry[2] for entry in seen if entry[0] == "train"][::7] == pytest.approx([5.0, 1.0236], abs=1e-4)
    validated = [entry[1] for entry in seen if entry[0] == "val"]
    assert validated == pytest.approx([4 / 6] * 4 + [1.0] * 4)  # after 4 and 8 iterations, 4 batches each
    assert runner.model.progress == 1.0
    assert runner.model.policy.temperature == 1.0
    assert len(runner.message_hub.get_scalar("train/curriculum").data[0]) == 8


def test_validation_alone_uses_the_final_values(toy_config):
    runner = Runner.from_cfg(toy_config())
    runner.model.set_curriculum(0.0)
    runner.val()
    assert {entry[1:] for entry in runner.model.seen} == {(1.0, 1.0)}


def test_model_without_curriculum(toy_config):
    runner = Runner.from_cfg(toy_config())
    with pytest.raises(ValueError, match=r"set_curriculum.*Linear has none"):
        CurriculumHook().apply(torch.nn.Linear(1, 1), 0.5)
    runner.model.set_curriculum = None
    with pytest.raises(ValueError, match=r"set_curriculum.*ToyVLM has none"):
        runner.train()


def test_policy_without_temperature(toy_config):
    runner = Runner.from_cfg(toy_config())
    runner.model.policy = torch.nn.Identity()
    with pytest.raises(ValueError, match="temperature, and Identity has none"):
        runner.train()
    TemperatureHook(start=2.0, end=1.0).apply(torch.nn.Linear(1, 1), 1.0)  # outside training there is nothing to set


@pytest.mark.parametrize(
    "settings, words", [({"start": 0.0, "end": 1.0}, "start is 0.0"), ({"start": 1.0, "end": -2}, "end is -2")]
)
def test_temperature_must_be_positive(settings, words):
    with pytest.raises(ValueError, match=words):
        TemperatureHook(**settings)


def test_settings_are_checked_when_the_hook_is_built():
    with pytest.raises(ValueError, match="schedule is 'lineal'"):
        CurriculumHook(schedule="lineal")
    with pytest.raises(ValueError, match=r"end is 1\.5"):
        CurriculumHook(end=1.5)


def test_noise_fades(toy_config):
    runner = Runner.from_cfg(toy_config(custom_hooks=[{"type": "NoiseHook", "start": 1.0, "end": 0.0, "until": 0.5}]))
    with pytest.raises(ValueError, match="NoiseHook needs a policy with a noise, and ToyPolicy has none"):
        runner.train()
    runner.model.policy.noise = 1.0
    runner.train()
    assert runner.message_hub.get_scalar("train/noise").data[0].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]
    assert runner.model.policy.noise == 0.0
    with pytest.raises(ValueError, match=r"end is -0\.5; expected a noise of at least 0\.0"):
        NoiseHook(start=1.0, end=-0.5)


def test_temperature_follows_its_schedule(toy_config):
    runner = Runner.from_cfg(toy_config(custom_hooks=[{"type": "TemperatureHook", "start": 4.0, "end": 2.0, "until": 0.5}]))
    runner.model.policy.temperature = 1.0
    runner.train()
    logged = runner.message_hub.get_scalar("train/temperature").data[0].tolist()
    assert logged == [4.0, 3.5, 3.0, 2.5, 2.0, 2.0, 2.0, 2.0] and runner.model.policy.temperature == 2.0


def test_momentum_targets_ramp_up(toy_config):
    """Over half of eight iterations: as LAVIS's, where that is two epochs."""
    runner = Runner.from_cfg(toy_config(custom_hooks=[{"type": "RampUpHook", "end": 0.5}]))
    with pytest.raises(ValueError, match="RampUpHook needs a backbone with momentum targets, and NoneType has none"):
        runner.train()
    runner.model.backbone = torch.nn.Identity()
    runner.model.backbone.ramp_up = -1.0  # moved by the hook alone
    runner.train()
    logged = runner.message_hub.get_scalar("train/ramp_up").data[0].tolist()
    assert logged == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0] and runner.model.backbone.ramp_up == 1.0
