import json

import pytest

from smarttrim_mm.engine.visualize import main


def test_tool_draws_both_pictures(small_config, small_checkpoint, tmp_path, capsys):
    config = small_config("smarttrim")
    scalars = tmp_path / "run" / "20260101_000000" / "vis_data" / "scalars.json"
    scalars.parent.mkdir(parents=True)
    scalars.write_text("".join(json.dumps({"loss": 1.0, "loss_task": 1.0, "step": i}) + "\n" for i in (10, 20)))
    out = tmp_path / "pictures"
    arguments = [config, small_checkpoint(config), "--out", str(out)]
    made = main([*arguments, "--num", "2", "--curves", f"a title={tmp_path / 'run'}", str(tmp_path / "run")])
    model = ["pruned_patches.png", "keep_scores.png", "head_map.png", "head_scores.png", "compute.png"]
    assert [path.name for path in made] == [*model, "training_curves.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    printed = capsys.readouterr().out
    assert str(out / "training_curves.png") in printed and "running inputs" in printed
    assert [path.name for path in main([*arguments, "--indices", "0", "3", "--max-inputs", "0"])] == model


def test_tool_writes_for_tensorboard(small_config, small_checkpoint, tmp_path):
    config = small_config("smarttrim")
    arguments = [config, small_checkpoint(config), "--out", str(tmp_path / "events"), "--num", "1"]
    assert main([*arguments, "--backends", "tensorboard"]) == []
    assert [path.name.startswith("events.out.tfevents") for path in (tmp_path / "events").iterdir()] == [True]


def test_wrong_numbers_are_refused(small_config, small_checkpoint, tmp_path):
    config = small_config("smarttrim")
    arguments = [config, small_checkpoint(config), "--out", str(tmp_path)]
    with pytest.raises(ValueError, match="--num is 0"):
        main([*arguments, "--num", "0"])
    with pytest.raises(ValueError, match="--max-inputs is -1"):
        main([*arguments, "--max-inputs", "-1"])
    with pytest.raises(ValueError, match=r"indices holds \[70000\]"):
        main([*arguments, "--indices", "70000"])
