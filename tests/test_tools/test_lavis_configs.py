"""Every config of LAVIS's models at reduced size, on data sets in the official formats: train, validate, resume, test."""

from collections.abc import Callable
from pathlib import Path

import official_files
import pytest
import torch
from mmengine.config import Config

from smarttrim_mm import cli
from smarttrim_mm.backbones.lavis import small
from smarttrim_mm.backbones.lavis_checkpoint import plain_weights
from smarttrim_mm.engine.building import build_loader, build_model, model_batches, read_config
from smarttrim_mm.registry import MODELS
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("lavis_*/*.py"))
TASKS = {"nlvr2": (official_files.write_nlvr2, "nlvr2", "nlvr2/consistency")}
LAYERS = {"blip": 7}  # one that merges NLVR2's attentions


@pytest.fixture(autouse=True)
def plain_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run dumps its config five times, and to lay out so long a one takes yapf a second."""
    monkeypatch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))


@pytest.fixture
def small_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes the task's data, BERT's tokenizer, a public checkpoint and a small config; works in a folder of its own."""

    def make(path: Path) -> str:
        monkeypatch.chdir(tmp_path)
        family, task, _ = path.stem.split("_")
        write, folder, _ = TASKS[task]
        write(tmp_path / "data" / folder)
        letters = [chr(ord("a") + i) for i in range(26)]
        words = ["[PAD]", "[UNK]", *letters, *(f"##{x}" for x in letters), *".,?'!", *map(str, range(10))]
        words += [f"[unused{i}]" for i in range(101 - len(words))] + ["[CLS]", "[SEP]", "[MASK]"]
        bert = tmp_path / "data" / "bert-base-uncased"
        official_files.write_json(bert / "config.json", {"model_type": "bert"})
        (bert / "vocab.txt").write_text("\n".join(words))
        cfg = Config.fromfile(path)
        sizes = small(LAYERS[family])
        sizes["text"]["max_position_embeddings"] = 64
        cfg.model.backbone.update(**sizes, checkpoint=str(tmp_path / "public.pth"))
        torch.manual_seed(1)
        torch.save({"model": MODELS.build({**cfg.model.backbone, "checkpoint": None}).host.state_dict()}, "public.pth")
        size = sizes["vision"]["img_size"]
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            loader = cfg[name]
            loader.update(batch_size=2, num_workers=0, persistent_workers=False)
            for step in loader.dataset.pipeline[0].transforms:
                if "scale" in step:
                    step.scale = size if step.type.endswith("RandomResizedCrop") else (size, size)
        cfg.train_cfg.update(max_iters=4, val_interval=4)
        cfg.default_hooks.logger.interval, cfg.default_hooks.checkpoint.interval = 1, 2
        cfg.log_level = "WARNING"
        small_config = tmp_path / f"small_{path.stem}_{tmp_path.parent.name}.py"
        cfg.dump(small_config)
        return str(small_config)

    return make


def test_every_family_has_configs():
    assert {path.parent.name for path in CONFIGS} >= {"lavis_blip"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_train_validate_resume_and_test(small_task, path, tmp_path):
    config, work_dir = small_task(path), tmp_path / "work"
    cli.train([config, "--work-dir", str(work_dir)])
    straight = load_checkpoint_file(work_dir / "iter_4.pth")["state_dict"]
    public = load_checkpoint_file(tmp_path / "public.pth")["model"]
    trained = plain_weights(straight)
    assert trained.keys() == public.keys()
    largest = max(float((trained[key] - public[key]).abs().max()) for key in public)
    assert 0 < largest < 1e-3, "4 steps at 3e-5 from the public checkpoint"
    (work_dir / "iter_4.pth").unlink()  # as if it had been killed before
    cli.train([config, "--work-dir", str(work_dir), "--resume", str(work_dir / "iter_2.pth")])
    content = load_checkpoint_file(work_dir / "iter_4.pth")
    assert all(torch.equal(value, straight[key]) for key, value in content["state_dict"].items())
    metrics = cli.test([config, str(work_dir / "iter_4.pth"), "--work-dir", str(tmp_path / "test")])
    assert 0 <= metrics[TASKS[path.stem.split("_")[1]][2]] <= 1


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem.endswith("2x")], ids=lambda path: path.stem)
def test_eight_samples_are_learnt_by_heart(small_task, path):
    """Inputs reach the head: the loss of a batch falls to a tenth, trimmers and all."""
    cfg = read_config(small_task(path), {"model.distillation": None, "model.budget": None})
    cfg.train_dataloader.batch_size = 8
    model = build_model(cfg).train()
    inputs = next(model_batches(model, build_loader(cfg, "train")))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(inputs)["loss_task"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-20:]) < 0.1 * losses[0]
