"""Every config of mmpretrain's classifiers at reduced size, on a tiny ImageNet: train, validate, resume, test."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import official_files
import pytest
import torch
from mmengine.config import Config

from smarttrim_mm import cli
from smarttrim_mm.backbones.mmpretrain_checkpoint import plain_weights
from smarttrim_mm.backbones.mmpretrain_host import build_host
from smarttrim_mm.engine import calibration, check_data, visualize
from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.models.image_preprocessor import ImagePreprocessor
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file
from smarttrim_mm.visualization.traces import trace_pairs

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs/vit").glob("*.py"))
WHOLE = [path for path in CONFIGS if path.stem.endswith(("_dense", "-2x"))]
CLASSES = ["n01", "n02", "n03", "n04", "n05", "n06"]


@pytest.fixture
def small_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes an ImageNet of six classes, a public checkpoint and a small config; works in a folder of its own."""

    def make(path: Path) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
        for split, images in (("train", 4), ("val", 2)):
            for number, name in enumerate(CLASSES):
                for image in range(images):
                    official_files.write_image(
                        tmp_path / f"data/imagenet/{split}/{name}/{image}.JPEG", (40, 50), 40 * number + image
                    )
        cfg = Config.fromfile(path)
        model = cfg.model.backbone.model
        model.backbone.arch = {"embed_dims": 32, "num_layers": 4, "num_heads": 4, "feedforward_channels": 64}
        model.backbone.update(img_size=32, patch_size=8)
        model.head.update(in_channels=32, num_classes=6)
        cfg.model.task_loss.num_classes = cfg.data_preprocessor.num_classes = 6
        torch.manual_seed(1)
        state_dict = {**build_host(model).state_dict(), "data_preprocessor.mean": torch.zeros(3, 1, 1)}
        torch.save({"meta": {"epoch": 300}, "state_dict": state_dict}, "public.pth")
        cfg.model.backbone.checkpoint = str(tmp_path / "public.pth")
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            cfg[name].update(batch_size=4, num_workers=0, persistent_workers=False)
            cfg[name].dataset.metainfo = {"classes": CLASSES}
            for step in cfg[name].dataset.pipeline:
                step.update({key: 32 for key in ("scale", "crop_size") if key in step})
        cfg.train_cfg.update(max_iters=4, val_interval=4)
        cfg.default_hooks.logger.interval, cfg.default_hooks.checkpoint.interval = 1, 2
        cfg.log_level = "WARNING"
        small = tmp_path / f"small_{path.stem}_{tmp_path.parent.name}.py"
        cfg.dump(small)
        return str(small)

    return make


def test_every_model_has_its_configs():
    speeds = ["dense", *(f"smarttrim-{speed}x" for speed in ("1.5", "2", "2.5", "3"))]
    models = ("vit-base-p16", "deit-small")
    assert {path.stem for path in CONFIGS} == {f"{name}_imagenet_{speed}" for name in models for speed in speeds}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_opens_with_its_launch_command(path):
    assert f".sh {path.relative_to(ROOT)} " in path.read_text().partition("_base_ =")[0]
    speedup = Config.fromfile(path).model.get("budget", {}).get("speedup")
    assert speedup is None if path.stem.endswith("dense") else path.stem.endswith(f"-{speedup:g}x")


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_train_validate_resume_and_test(small_config, path, tmp_path):
    config, work_dir = small_config(path), tmp_path / "work"
    cli.train([config, "--work-dir", str(work_dir)])
    straight = load_checkpoint_file(work_dir / "iter_4.pth")["state_dict"]
    public, trained = load_checkpoint_file(tmp_path / "public.pth")["state_dict"], plain_weights(straight)
    assert trained.keys() == public.keys() - {"data_preprocessor.mean"}
    assert 0 < max(float((trained[key] - public[key]).abs().max()) for key in trained) < 1e-3
    logged = [json.loads(line) for line in next(work_dir.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    assert any(0 <= line.get("accuracy/top5", -1) <= 100 for line in logged)
    (work_dir / "iter_4.pth").unlink()  # as if it had been killed before
    named = ["--cfg-options", f"experiment_name={path.stem}_resumed"]
    cli.train([config, "--work-dir", str(work_dir), "--resume", str(work_dir / "iter_2.pth"), *named])
    content = load_checkpoint_file(work_dir / "iter_4.pth")
    assert all(torch.equal(value, straight[key]) for key, value in content["state_dict"].items())
    out = tmp_path / "out.json"
    metrics = cli.test([config, str(work_dir / "iter_4.pth"), "--work-dir", str(tmp_path / "test"), "--out", str(out)])
    rows = json.loads(out.read_text())["predictions"]
    assert [row["answer"] for row in rows] == [name for name in CLASSES for _ in range(2)]
    assert metrics["accuracy/top1"] == pytest.approx(100 * sum(row["answer"] == row["predicted_answer"] for row in rows) / 12)
    assert metrics["compute/dense_multiply_adds"] > 0


def test_tools_take_images_alone(small_config, tmp_path, capsys):
    """A classifier is calibrated and drawn."""
    config, work_dir = small_config(ROOT / "configs/vit/deit-small_imagenet_smarttrim-2x.py"), tmp_path / "work"
    cli.train([config, "--work-dir", str(work_dir), "--no-validate"])
    checkpoint, calibrated = str(work_dir / "iter_4.pth"), str(tmp_path / "calibrated.pth")
    found = calibration.main([config, checkpoint, "--speedup", "1.1", "--out", calibrated])
    assert found.after.speedup >= 1.1 and found.after.samples == 12
    assert round(12 * found.after.accuracy) == pytest.approx(12 * found.after.accuracy)
    pictures = visualize.main([config, calibrated, "--out", str(tmp_path / "pictures"), "--indices", "0", "11"])
    assert "pruned_patches.png" in [path.name for path in pictures] and all(path.is_file() for path in pictures)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        check_data.main([config])
    assert "ImageNet is no VisionLanguageDataset, and only these can be checked" in capsys.readouterr().out


def test_an_image_is_drawn_as_it_was_seen(small_config):
    """Its pixels, its right class, and the model's."""
    cfg = read_config(small_config(ROOT / "configs/vit/deit-small_imagenet_dense.py"))
    model = build_model(cfg)
    loader = build_loader(cfg, "val", model)
    (trace,) = trace_pairs(model, loader, 11, 0)
    # all pixels of an image file are (201, 100, 200) there, but for JPEG's rounding: BGR
    assert np.abs(trace.pixels.astype(int) - (200, 100, 201)).max() <= 3
    assert trace.answer == CLASSES[5] and trace.predicted in CLASSES and trace.words == ()


def test_images_that_are_not_normalised_are_drawn():
    preprocessor = ImagePreprocessor(num_classes=6)
    assert preprocessor.mean == 0 and preprocessor.std == 1


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in WHOLE], ids=lambda path: path.stem)
def test_other_speeds_train(small_config, path, tmp_path):
    options = ["--cfg-options", "train_cfg.max_iters=2"]
    cli.train([small_config(path), "--work-dir", str(tmp_path / "work"), "--no-validate", *options])
    assert (tmp_path / "work" / "iter_2.pth").is_file()
