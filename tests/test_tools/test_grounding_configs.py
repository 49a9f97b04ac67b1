"""The configs of mmpretrain's grounding at reduced size, on RefCOCO's files: train, validate, test."""

import json
from collections.abc import Callable
from pathlib import Path

import mmpretrain_files
import pytest
import torch
from mmengine.config import Config

from smarttrim_mm import TrimInferencer, cli
from smarttrim_mm.backbones.mmpretrain_grounding import BlipGrounding
from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.registry import MODELS
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file
from smarttrim_mm.visualization.traces import trace_pairs

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "blip").glob("blip-base_refcoco_*.py"))
SIZE = 16


@pytest.fixture
def small_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Writes the data, BERT's tokenizer and a small config; works in a folder of its own, as paths are relative."""
    monkeypatch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
    monkeypatch.setattr("mmengine.dataset.base_dataset.gc.collect", lambda: 0)

    def make(path: Path) -> str:
        monkeypatch.chdir(tmp_path)
        mmpretrain_files.write_refcoco(tmp_path / "data")
        mmpretrain_files.write_bert(tmp_path / "data")
        cfg = Config.fromfile(path)
        (case,) = BlipGrounding.variants().values()
        cfg.model.backbone.model = case["model"]
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            loader = cfg[name]
            loader.update(batch_size=2, num_workers=0, persistent_workers=False)
            for step in loader.dataset.dataset.pipeline:
                if "scales" in step:
                    step.scales = [(SIZE - 1, SIZE - 1), (SIZE - 4, SIZE - 4)]
                if "scale" in step:
                    step.scale = (SIZE, SIZE)
                if "aug_translate" in step:
                    step.size = SIZE
        cfg.train_cfg.update(max_iters=2, val_interval=2)
        cfg.default_hooks.logger.interval, cfg.default_hooks.checkpoint.interval = 1, 2
        cfg.log_level = "WARNING"
        small = tmp_path / f"small_{path.stem}_{tmp_path.parent.name}.py"
        cfg.dump(small)
        return str(small)

    return make


def test_every_speed_has_its_config():
    speeds = {path.stem.partition("_refcoco_")[2]: Config.fromfile(path).model.get("budget") for path in CONFIGS}
    assert speeds.pop("dense") is None
    assert {name: budget.speedup for name, budget in speeds.items()} == {f"smarttrim-{s:g}x": s for s in (1.5, 2, 2.5, 3)}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_opens_with_its_launch_command(path):
    assert f".sh {path.relative_to(ROOT)} " in path.read_text().partition("_base_ =")[0]


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem.endswith(("dense", "-2x"))], ids=lambda path: path.stem)
def test_train_validate_and_test(small_config, path, tmp_path):
    config, work_dir, out = small_config(path), tmp_path / "work", tmp_path / "out.json"
    cli.train([config, "--work-dir", str(work_dir)])
    trained = load_checkpoint_file(work_dir / "iter_2.pth")["state_dict"]
    assert all(torch.isfinite(value).all() for value in trained.values() if value.is_floating_point())
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [row for row in rows if "loss_task" in row]
    assert len(steps) == 2 and all(row["loss_task"] > 0 and 0 < row["box_giou"] <= 2 for row in steps)
    assert ("loss_distill" in steps[0]) == ("smarttrim" in path.stem)
    arguments = ["--work-dir", str(tmp_path / "test"), "--out", str(out), "--cfg-options", f"experiment_name={path.stem}_test"]
    metrics = cli.test([config, str(work_dir / "iter_2.pth"), *arguments])
    assert 0 <= metrics["visual-grounding/miou"] <= 1 and 0 <= metrics["visual-grounding/acc"] <= 1
    answers = json.loads(out.read_text())["predictions"]
    assert [answer["box"] for answer in answers] == [[3.0, 1.0, 12.0, 5.0]] * 2
    assert all(len(answer["predicted_box"]) == 4 for answer in answers)
    assert metrics["compute/speedup"] == (1 if "dense" in path.stem else pytest.approx(1, abs=0.2))


def test_boxes_are_those_of_the_files_pixels(small_config):
    """Images of 16 x 8 pixels are seen as 16 x 16."""
    cfg = Config.fromfile(small_config(CONFIGS[0]))
    model = MODELS.build({**cfg.model, "data_preprocessor": cfg.data_preprocessor}).eval()
    (batch,) = build_loader(cfg, "val", model)
    with torch.no_grad():
        samples = model(**model.data_preprocessor(batch, False), mode="predict")
    for sample in samples:
        assert sample.scale_factor == (1.0, 2.0) and sample.gt_bboxes.tolist() == [[3.0, 1.0, 12.0, 5.0]]
        (left, top, right, bottom), steps = sample.pred_bboxes[0], sample.pred_scores[0]
        assert 0 <= left <= right <= 16 and 0 <= top <= bottom <= 8 and len(steps) == 641


def test_an_inferencer_gives_boxes(small_config: Callable[[Path], str], tmp_path: Path) -> None:
    """In pixels of the file, as a test gives them."""
    config = small_config(ROOT / "configs" / "blip" / "blip-base_refcoco_smarttrim-2x.py")
    cfg = read_config(config)
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save({"state_dict": model.state_dict()}, "weights.pth")
    loader = build_loader(cfg, "test", model)
    with torch.no_grad():
        tested = [sample for data in loader for sample in model.test_step(data)]
    inferencer = TrimInferencer(config, "weights.pth")
    results = inferencer([sample.img_path for sample in tested], [list(sample.questions) for sample in tested])
    boxes = torch.cat([sample.pred_bboxes for sample in tested])
    torch.testing.assert_close(torch.tensor([result.box for result in results]), boxes)

    assert boxes[:, 3].max() <= SIZE / 2, "the file is half as high as what the model sees"
    for result in results:
        assert result.answer is None and result.scores is None and not result.best()
        assert result.said == "box " + ", ".join(f"{edge:.1f}" for edge in result.box)
        assert result.to_dict()["box"] == result.box
    for item, box in enumerate(boxes):
        (trace,) = trace_pairs(model, loader, item, 0)
        assert trace.predicted == "box " + ", ".join(f"{edge:.0f}" for edge in box.tolist()) and trace.answer is None
