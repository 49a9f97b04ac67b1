import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from smarttrim_mm.hooks.safe_state import SafeStateHook

EPOCHS = {
    "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 4, "val_interval": 2},
    "train_dataloader.sampler": {"type": "DefaultSampler", "shuffle": True},
    "default_hooks.checkpoint": {"type": "SafeCheckpointHook", "interval": 2, "by_epoch": True},
    "param_scheduler": [{"type": "MultiStepLR", "milestones": [1, 3]}],
}


def weights(runner: Runner) -> dict:
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


@pytest.mark.parametrize(
    "changes, middle",
    [
        ({}, "iter_4.pth"),
        ({"train_cfg.val_interval": 3}, "iter_4.pth"),
        ({"default_hooks.checkpoint.save_best": "toy/acc"}, "iter_4.pth"),
        ({"train_dataloader.num_workers": 1}, "iter_4.pth"),
        (
            {"train_dataloader.sampler": {"type": "DefaultSampler", "shuffle": True}, "train_dataloader.batch_size": 4},
            "iter_4.pth",
        ),
        (EPOCHS, "epoch_2.pth"),
    ],
    ids=["iterations", "validation apart", "saved while validating", "worker", "restarted loader", "epochs"],
)
def test_resuming_is_exact(toy_config, monkeypatch, changes, middle):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # mmengine waits 2 s when a loader restarts
    straight = Runner.from_cfg(toy_config("straight", **changes))
    straight.train()
    start = str(Path(straight.work_dir) / middle)
    resumed = Runner.from_cfg(toy_config("resumed", load_from=start, resume=True, **changes))
    resumed.train()
    for name, value in weights(straight).items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    half = len([entry for entry in straight.model.seen if entry[0] == "train"]) // 2
    train = [[entry for entry in runner.model.seen if entry[0] == "train"] for runner in (straight, resumed)]
    assert train[0][half:] == train[1]
    ours, theirs = (runner.message_hub.get_scalar("train/loss").data[0] for runner in (straight, resumed))
    assert np.array_equal(ours, theirs)
    if "train_dataloader.num_workers" in changes:  # left to the garbage collector, each costs 5 s
        straight.train_loop.dataloader_iterator._iterator._shutdown_workers()
        resumed.train_loop.dataloader_iterator.batches._iterator._shutdown_workers()


def test_validation_does_not_change_training(toy_run):
    validated = toy_run("with")
    alone = toy_run("without", val_cfg=None, val_dataloader=None, val_evaluator=None)
    assert validated.model.seen != alone.model.seen
    for name, value in weights(validated).items():
        assert torch.equal(value, alone.model.state_dict()[name]), name


def test_training_starts_from_the_seed_whatever_was_drawn_before(toy_config):
    states = []
    for name in ("first", "second"):
        runner = Runner.from_cfg(toy_config(name))
        torch.rand(len(name))
        runner.train()
        states.append(weights(runner))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_validation_that_was_cut_off_is_made_up_for(toy_run):
    straight = toy_run("straight")  # its last checkpoint is written before its last validation
    start = str(Path(straight.work_dir) / "iter_8.pth")
    resumed = toy_run("resumed", load_from=start, resume=True)
    assert [entry[0] for entry in resumed.model.seen] == ["val"] * 4
    assert resumed.message_hub.get_scalar("val/toy/acc").data[0].shape == (2,)


def test_a_validation_that_a_checkpoint_knows_of_is_not_repeated(toy_run):
    straight = toy_run("straight", **{"default_hooks.checkpoint.save_best": "toy/acc"})
    start = str(Path(straight.work_dir) / "iter_8.pth")
    assert toy_run("resumed", load_from=start, resume=True).model.seen == []


def test_checkpoint_is_plain_and_complete(toy_run, caplog):
    runner = toy_run(**{"default_hooks.checkpoint.save_best": "toy/acc"})
    path = Path(runner.work_dir) / "iter_8.pth"
    assert torch.serialization.get_unsafe_globals_in_checkpoint(str(path)) == []
    content = torch.load(path, weights_only=True)
    assert content["meta"]["dataset_meta"]["classes"] == ("yes", "no")
    assert content["message_hub"]["runtime_info"]["best_score"] == 2.0
    assert content["message_hub"]["log_scalars"]["train/loss"]["values"].shape == (8,)
    assert len(content["random_states"]) == 1
    assert hasattr(content["state_dict"], "_metadata")
    resumed = SafeStateHook()
    resumed.after_load_checkpoint(runner, content)
    assert isinstance(content["message_hub"]["log_scalars"]["train/loss"], HistoryBuffer)
    assert np.array_equal(content["message_hub"]["runtime_info"]["val/toy/matrix"], np.eye(2))


def test_what_has_no_plain_form_is_left_out_with_a_word(toy_config, caplog):
    runner = Runner.from_cfg(toy_config())
    runner.message_hub.update_info("odd", Runner)
    with caplog.at_level("WARNING"):
        runner.train()
    content = torch.load(Path(runner.work_dir) / "iter_8.pth", weights_only=True)
    assert "odd" not in content["message_hub"]["runtime_info"]
    assert "odd" not in content["message_hub"]["resumed_keys"]
    log = next(Path(runner.work_dir).glob("*/*.log")).read_text()
    assert log.count("message_hub.runtime_info.odd (builtins.type) has no plain form") == 1


def test_history_can_be_cut(toy_run):
    runner = toy_run(**{"default_hooks.state.history": 3})
    content = torch.load(Path(runner.work_dir) / "iter_8.pth", weights_only=True)
    assert content["message_hub"]["log_scalars"]["train/loss"]["values"].shape == (3,)
    with pytest.raises(ValueError, match="history is 0"):
        SafeStateHook(history=0)


def test_another_number_of_processes_is_said(toy_run):
    straight = toy_run("straight")
    path = Path(straight.work_dir) / "iter_4.pth"
    content = torch.load(path, weights_only=True)
    content["random_states"] = content["random_states"] * 2
    torch.save(content, path)
    resumed = toy_run("resumed", load_from=str(path), resume=True)
    log = next(Path(resumed.work_dir).glob("*/*.log")).read_text()
    assert "the random states of 2 processes and 1 are running" in log


def test_plain_checkpoint_hook_works_too(toy_run):
    runner = toy_run(**{"default_hooks.checkpoint.type": "CheckpointHook"})
    assert "random_states" in torch.load(Path(runner.work_dir) / "iter_8.pth", weights_only=True)


def test_resuming_logs_no_false_alarm(toy_run):
    straight = toy_run("straight")
    copied = Path(straight.work_dir).parent / "start.pth"
    shutil.copy(Path(straight.work_dir) / "iter_4.pth", copied)
    resumed = toy_run("resumed", load_from=str(copied), resume=True)
    lines = next(Path(resumed.work_dir).glob("*/*.log")).read_text().splitlines()
    warnings = [line for line in lines if "WARNING" in line and "FileClient" not in line]
    assert all("Advance dataloader" in line for line in warnings), warnings


def test_scalars_reach_the_backend_and_the_line_is_short(toy_run):
    runner = toy_run(log_level="INFO")
    folder = next(Path(runner.work_dir).glob("2*"))
    scalars = [json.loads(line) for line in (folder / "vis_data" / "scalars.json").read_text().splitlines()]
    assert scalars[0]["kept/image.1/image"] == pytest.approx(0.97)
    assert scalars[-1]["toy/kept/image.1/image"] == pytest.approx(0.9)
    log = next(folder.glob("*.log")).read_text()
    assert "kept image 1.00 .97 | heads .98" in log and "eta: " in log
    assert "kept image 1.00 .90" in log
    assert "kept/image.1/image" not in log.split("custom_hooks")[-1]
