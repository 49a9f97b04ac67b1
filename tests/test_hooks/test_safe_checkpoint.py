from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from smarttrim_mm.utils import checkpoint_io


def saved(runner: Runner) -> list[str]:
    return sorted(path.name for path in Path(runner.work_dir).glob("*.pth"))


def test_keeps_as_many_as_asked(toy_run):
    runner = toy_run(**{"default_hooks.checkpoint.interval": 2, "default_hooks.checkpoint.max_keep_ckpts": 3})
    assert saved(runner) == ["iter_4.pth", "iter_6.pth", "iter_8.pth"]
    assert (Path(runner.work_dir) / "last_checkpoint").read_text().endswith("iter_8.pth")


def test_no_checkpoint_amid_accumulated_gradients(toy_config, toy_run):
    settings = {"optim_wrapper.accumulative_counts": 3, "default_hooks.checkpoint.interval": 4}
    runner = Runner.from_cfg(toy_config("amid", **settings))
    with pytest.raises(ValueError, match=r"interval is 4; expected a multiple of .*counts=3, .* Set the interval to 6, for"):
        runner.train()
    assert not saved(runner) and runner.iter == 0
    assert saved(toy_run("fits", **settings | {"default_hooks.checkpoint.interval": 6})) == ["iter_6.pth", "iter_8.pth"]


def test_keeps_one_best(toy_run):
    settings = {"default_hooks.checkpoint.save_best": "toy/acc", "default_hooks.checkpoint.max_keep_ckpts": 1}
    runner = toy_run(**settings)
    assert saved(runner) == ["best_toy_acc_iter_8.pth", "iter_8.pth"]


@pytest.mark.parametrize("best", [False, True], ids=["last", "best"])
def test_a_kill_while_writing_leaves_the_checkpoint_before(toy_config, monkeypatch, best):
    """With one checkpoint kept, mmengine's hook would have removed it before writing the next."""
    settings = {"default_hooks.checkpoint.max_keep_ckpts": 1}
    if best:
        settings["default_hooks.checkpoint.save_best"] = "toy/acc"
    runner = Runner.from_cfg(toy_config(**settings))
    write = checkpoint_io.write_atomically
    victim = "best_toy_acc_iter_8.pth" if best else "iter_8.pth"

    def killed(path, data):
        if Path(path).name == victim:
            Path(path).with_name(f".{victim}.partial").write_bytes(data[:100])
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(checkpoint_io, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    expected = ["best_toy_acc_iter_4.pth", "iter_8.pth"] if best else ["iter_4.pth"]
    assert saved(runner) == expected
    for name in expected:
        checkpoint_io.load_checkpoint_file(Path(runner.work_dir) / name)
    assert checkpoint_io.newest_checkpoint(runner.work_dir) == str(Path(runner.work_dir) / expected[-1])


def test_a_better_best_of_the_same_name_is_not_removed(toy_run):
    settings = {"default_hooks.checkpoint.save_best": "toy/acc", "train_cfg.max_iters": 4}
    runner = toy_run("run", **settings)
    start = Path(runner.work_dir) / "iter_4.pth"
    content = torch.load(start, weights_only=True)
    content["message_hub"]["runtime_info"] |= {"best_score": -1.0, "last_validated_iter": 0}
    torch.save(content, start)
    again = toy_run("run", load_from=str(start), resume=True, experiment_name="again", **settings)
    assert again.message_hub.get_info("best_score") == 1.0
    assert saved(again) == ["best_toy_acc_iter_4.pth", "iter_4.pth"]
