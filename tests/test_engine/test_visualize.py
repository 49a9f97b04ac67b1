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
    assert [path.name for path in made] == ["pruned_patches.png", "training_curves.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    assert str(out / "training_curves.png") in capsys.readouterr().out
    assert [path.name for path in main([*arguments, "--indices", "0", "3"])] == ["pruned_patches.png"]


def test_wrong_numbers_are_refused(small_config, small_checkpoint, tmp_path):
    config = small_config("smarttrim")
    arguments = [config, small_checkpoint(config), "--out", str(tmp_path)]
    with pytest.raises(ValueError, match="--num is 0"):
        main([*arguments, "--num", "0"])
    with pytest.raises(ValueError, match=r"indices holds \[70000\]"):
        main([*arguments, "--indices", "70000"])
