import json
from pathlib import Path

import pytest
from mmengine.config import Config

from smarttrim_mm.utils.run_guard import RECORD, claim_work_dir, comparable_settings, differing_settings, fingerprint

BASE = {
    "model": {"type": "TrimmedVLM", "policy": {"type": "SmartTrim", "target": 2.0}, "sizes": [1, 2]},
    "train_dataloader": {"batch_size": 4, "num_workers": 0},
    "train_cfg": {"max_iters": 10},
    "default_hooks": {"logger": {"interval": 10}},
    "pipeline": [{"type": "Load"}, {"type": "Resize", "scale": (64, 64)}],
}


def config(name: str = "a.py", **changes) -> Config:
    cfg = Config(json.loads(json.dumps(BASE)))
    cfg.merge_from_dict(changes)
    object.__setattr__(cfg, "_filename", f"configs/{name}")
    return cfg


def run_in(work_dir: Path, cfg: Config) -> None:
    claim_work_dir(work_dir, cfg)
    (work_dir / "iter_1.pth").write_bytes(b"weights")


def test_settings_that_compute_nothing_are_left_out():
    moved = config(
        work_dir="elsewhere",
        launcher="pytorch",
        resume=True,
        model_wrapper_cfg={"type": "MMDistributedDataParallel"},
        **{"train_dataloader.num_workers": 8, "default_hooks.logger.interval": 1, "test_evaluator": {"type": "X"}},
    )
    assert comparable_settings(moved) == comparable_settings(config())
    assert fingerprint(comparable_settings(moved)) == fingerprint(comparable_settings(config()))


def test_settings_are_named_by_their_place():
    settings = comparable_settings(config())
    assert settings["model.policy.target"] == 2.0
    assert settings["model.sizes"] == [1, 2]
    assert settings["pipeline.1.scale"] == [64, 64]


def test_differences_are_listed():
    old = comparable_settings(config())
    new = comparable_settings(config(**{"model.policy.target": 3.0, "model.extra": True}))
    assert differing_settings(old, new) == ["model.extra: unset -> true", "model.policy.target: 2.0 -> 3.0"]
    assert fingerprint(old) != fingerprint(new)


def test_the_same_config_may_come_back(tmp_path):
    run_in(tmp_path, config())
    claim_work_dir(tmp_path, config(work_dir="x", launcher="slurm"))
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["config"] == "configs/a.py"


def test_another_config_is_refused_and_nothing_written(tmp_path):
    run_in(tmp_path, config())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = config("b.py", **{"model.policy.target": 3.0, "train_cfg.max_iters": 20})
    with pytest.raises(ValueError, match=r"holds the run of configs/a\.py.*not of configs/b\.py") as error:
        claim_work_dir(tmp_path, other)
    assert "model.policy.target: 2.0 -> 3.0; train_cfg.max_iters: 10 -> 20" in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_long_lists_of_differences_are_cut(tmp_path):
    run_in(tmp_path, config())
    many = config(**{f"model.k{i:02}": "x" * 100 for i in range(20)})
    with pytest.raises(ValueError, match=r"model\.k11: unset -> .*and 8 more") as error:
        claim_work_dir(tmp_path, many)
    assert "x" * 60 not in str(error.value)


def test_other_starting_weights_are_another_run_unless_it_resumes(tmp_path):
    run_in(tmp_path, config(load_from="dense_0.pth"))
    other = config(load_from="dense_1.pth")
    with pytest.raises(ValueError, match=r'load_from: "dense_0\.pth" -> "dense_1\.pth"'):
        claim_work_dir(tmp_path, other)
    claim_work_dir(tmp_path, other, resuming=True)


def test_a_folder_without_checkpoints_may_change_hands(tmp_path):
    claim_work_dir(tmp_path / "run", config())
    claim_work_dir(tmp_path / "run", config("b.py", **{"model.policy.target": 3.0}))
    assert json.loads((tmp_path / "run" / RECORD).read_text())["config"] == "configs/b.py"


def test_checkpoints_of_unknown_origin(tmp_path):
    (tmp_path / "epoch_1.pth").touch()
    with pytest.raises(ValueError, match=r"holds epoch_1\.pth, but no run\.json"):
        claim_work_dir(tmp_path, config())
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        claim_work_dir(tmp_path, config())
