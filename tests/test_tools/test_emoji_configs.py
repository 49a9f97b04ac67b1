"""The configs of mmpretrain's BlipRetrieval on emoji names, on a few pictures: train, validate, test."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from official_files import write_noto_emoji

from smarttrim_mm import cli
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs/blip").glob("*_emoji-retrieval_*.py"))
SIZES = {"num_test_images": 20, "num_val_images": 4}
SMALL = {
    "train_cfg": {"max_iters": 2, "val_interval": 2},
    "train_dataloader": {"batch_size": 8, "dataset": SIZES},
    "val_dataloader": {"batch_size": 8, "dataset": SIZES},
    "test_dataloader": {"batch_size": 8, "dataset": SIZES},
    "default_hooks": {"logger": {"interval": 1}, "checkpoint": {"interval": 2}},
    "log_level": "WARNING",
}
RECALLS = [f"retrieval/{wanted}_r{k}" for wanted in ("text", "image") for k in (1, 5, 10)]


def test_there_is_a_dense_and_a_trimmed_one():
    assert [path.stem.split("_")[-1] for path in CONFIGS] == ["dense", "smarttrim-2x"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_two_steps_and_both_directions(path, tmp_path, monkeypatch):
    assert f"train.py {path.relative_to(ROOT)}" in path.read_text().partition("_base_ =")[0]
    monkeypatch.chdir(tmp_path)
    write_noto_emoji(tmp_path / "data/noto_emoji")
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(SMALL)
    cfg.param_scheduler[1].end = 10_000
    config, work_dir = tmp_path / f"small_{path.stem}.py", tmp_path / "work"
    cfg.dump(config)
    cli.train([str(config), "--work-dir", str(work_dir)])
    logged = [json.loads(line) for line in next(work_dir.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    steps = [line for line in logged if "loss_itc" in line]
    assert len(steps) == 2 and all(line["loss_itm"] > 0 for line in steps)
    assert all(("loss_distill" in line and "loss_budget" in line) == path.stem.endswith("2x") for line in steps)
    weights = load_checkpoint_file(work_dir / "iter_2.pth")["state_dict"]
    moved = abs(float(weights["backbone.host.temp"]) - 0.07)
    assert 0 < moved < 1e-6, "two steps of warm-up at 0.02 of the rate: 1e-5 and more without"
    metrics = cli.test([str(config), str(work_dir / "iter_2.pth"), "--work-dir", str(tmp_path / "test")])
    assert all(0 <= metrics[name] <= 1 for name in RECALLS)
    # untrained trimmers keep everything, and cost a little; 20 pictures choose 16 names each, and 20 names 16 pictures
    assert 0.97 < metrics["compute/speedup"] <= 1
    image, text, pair = 57.5, 0.8, 3.2
    assert image + text + 16 * pair < metrics["compute/dense_multiply_adds"] < image + text + 20 * pair + 10
