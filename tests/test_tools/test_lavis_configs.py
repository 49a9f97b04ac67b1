"""Every config of LAVIS's models at reduced size, on data sets in the official formats: train, validate, resume, test."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import official_files
import pytest
import torch
from mmengine.config import Config

from smarttrim_mm import cli
from smarttrim_mm.backbones.lavis_checkpoint import plain_weights
from smarttrim_mm.backbones.lavis_host import small
from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.registry import MODELS
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("lavis_*/*.py"))
WHOLE = [path for path in CONFIGS if path.stem.endswith(("_dense", "-2x"))]
RECALL = "retrieval/recall_mean"
TASKS = {
    "nlvr2": (official_files.write_nlvr2, "nlvr2", "nlvr2/consistency"),
    "snli-ve": (official_files.write_snli_ve, "snli_ve", "class/accuracy"),
    "vqav2": (official_files.write_vqav2, "vqav2", None),
    "coco-caption": (official_files.write_coco_captions, "coco", "caption/bleu_1"),
    "flickr30k-retrieval": (partial(official_files.write_karpathy, source="flickr30k", images=20), "flickr30k", RECALL),
    "coco-retrieval": (partial(official_files.write_karpathy, source="coco", images=20), "coco", RECALL),
    "easy-vqa": (None, None, "vqa/accuracy"),  # comes with its package
    "easy-vqa-single": (None, None, "vqa/accuracy"),
}
SIZES = {
    "blip_nlvr": small(7, vision={"img_size": 32}),  # with a layer that merges NLVR2's attentions
    "blip_caption": small(2, vision={"img_size": 32}),
    "blip_vqa": small(2, vision={"img_size": 32}),  # of which 3x leaves enough
    "blip_retrieval": {**small(2, vision={"img_size": 32}), "queue_size": 24},
    "albef_retrieval": {**small(3, vision={"img_size": 32}, text={"fusion_layer": 1}), "queue_size": 24},
    "albef_nlvr": small(5, text={"fusion_layer": 1}),
    "albef_classification": small(3, text={"fusion_layer": 1}),
    "albef_vqa": {**small(3, vision={"img_size": 32}, text={"fusion_layer": 1}), "decoder": {"num_hidden_layers": 2}},
}


@pytest.fixture(autouse=True)
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run dumps its config five times, and to lay out so long a one takes yapf a second; each data set collects garbage."""
    monkeypatch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
    monkeypatch.setattr("mmengine.dataset.base_dataset.gc.collect", lambda: 0)


def task_of(path: Path) -> str:
    return path.stem.split("_")[1]


@pytest.fixture
def small_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes the task's data, BERT's tokenizer, a public checkpoint and a small config; works in a folder of its own."""

    def make(path: Path) -> str:
        monkeypatch.chdir(tmp_path)
        write, folder, _ = TASKS[task_of(path)]
        if write is not None:
            write(tmp_path / "data" / folder)
        letters = [chr(ord("a") + i) for i in range(26)]
        words = ["[PAD]", "[UNK]", *letters, *(f"##{x}" for x in letters), *".,?'!", *map(str, range(10))]
        words += [f"[unused{i}]" for i in range(101 - len(words))] + ["[CLS]", "[SEP]", "[MASK]"]
        bert = tmp_path / "data" / "bert-base-uncased"
        official_files.write_json(bert / "config.json", {"model_type": "bert"})
        (bert / "vocab.txt").write_text("\n".join(words))
        cfg = Config.fromfile(path)
        cfg.model.backbone.checkpoint = str(tmp_path / "public.pth")
        if write is not None:
            cfg.model.backbone.update(SIZES[cfg.model.backbone.arch])
            cfg.model.backbone.text.max_position_embeddings = 64
        torch.manual_seed(1)
        torch.save({"model": MODELS.build({**cfg.model.backbone, "checkpoint": None}).host.state_dict()}, "public.pth")
        size = cfg.model.backbone.vision.img_size
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            loader = cfg[name]
            loader.update(batch_size=4 if "retrieval" in path.stem else 2, num_workers=0, persistent_workers=False)
            if "num_classes" in loader.dataset:
                loader.dataset.num_classes = len(official_files.VQA_CLASSES)
            if "num_images" in loader.dataset:
                loader.dataset.num_images = None
            if write is None:
                loader.dataset.indices = 4
            for step in [*loader.dataset.pipeline, *loader.dataset.pipeline[0].get("transforms", [])]:
                if "scale" in step:
                    step.scale = size if step.type.endswith("RandomResizedCrop") else (size, size)
        for metric in [*cfg.val_evaluator, *cfg.test_evaluator]:
            if metric.type == "CaptionScores":
                metric.tokenizer = "plain"  # which needs no Java
        cfg.train_cfg.update(max_iters=4, val_interval=4)
        for schedule in cfg.param_scheduler:
            schedule.setdefault("end", 10_000)
        cfg.default_hooks.logger.interval, cfg.default_hooks.checkpoint.interval = 1, 2
        cfg.log_level = "WARNING"
        small_config = tmp_path / f"small_{path.stem}_{tmp_path.parent.name}.py"
        cfg.dump(small_config)
        return str(small_config)

    return make


def largest_change(trained: dict, public: dict) -> float:
    """Of a weight; a queue of retrieval is none."""
    return max(float((trained[key] - public[key]).abs().max()) for key in public if "queue" not in key)


def test_every_task_has_its_configs():
    speeds = {"dense", *(f"smarttrim-{speed}x" for speed in ("1.5", "2", "2.5", "3"))}
    tasks = ["blip_nlvr2", "blip_vqav2", "blip_coco-caption", "albef_nlvr2", "albef_snli-ve", "albef_vqav2"]
    tasks += [f"{family}_{source}-retrieval" for family in ("blip", "albef") for source in ("flickr30k", "coco")]
    assert {path.stem for path in CONFIGS} >= {f"{task}_{speed}" for task in tasks for speed in speeds}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_opens_with_its_launch_command(path):
    comment = path.read_text().partition("_base_ =")[0]
    assert f".sh {path.relative_to(ROOT)} " in comment or f"train.py {path.relative_to(ROOT)}" in comment
    speedup = Config.fromfile(path).model.get("budget", {}).get("speedup")
    assert (
        speedup is None if path.stem.endswith("dense") else path.stem.startswith("blip-small") or f"-{speedup:g}x" in path.stem
    )


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in WHOLE], ids=lambda path: path.stem)
def test_other_speeds_train(small_task, path, tmp_path):
    cli.train(
        [small_task(path), "--work-dir", str(tmp_path / "work"), "--no-validate", "--cfg-options", "train_cfg.max_iters=2"]
    )
    trained = plain_weights(load_checkpoint_file(tmp_path / "work" / "iter_2.pth")["state_dict"])
    public = load_checkpoint_file(tmp_path / "public.pth")["model"]
    assert 0 < largest_change(trained, public) < 1e-3


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_train_validate_resume_and_test(small_task, path, tmp_path):
    config, work_dir = small_task(path), tmp_path / "work"

    def named(name: str) -> list[str]:
        """Runs that begin within one second would be of one name, and share what mmengine keeps by it."""
        return ["--cfg-options", f"experiment_name={path.stem}_{name}"]

    cli.train([config, "--work-dir", str(work_dir)])
    straight = load_checkpoint_file(work_dir / "iter_4.pth")["state_dict"]
    public = load_checkpoint_file(tmp_path / "public.pth")["model"]
    trained = plain_weights(straight)
    assert trained.keys() == public.keys()
    assert 0 < largest_change(trained, public) < 1e-3, "4 steps at 3e-5 or less from the public checkpoint"
    (work_dir / "iter_4.pth").unlink()  # as if it had been killed before
    cli.train([config, "--work-dir", str(work_dir), "--resume", str(work_dir / "iter_2.pth"), *named("resumed")])
    content = load_checkpoint_file(work_dir / "iter_4.pth")
    assert all(torch.equal(value, straight[key]) for key, value in content["state_dict"].items())
    metrics = cli.test([config, str(work_dir / "iter_4.pth"), "--work-dir", str(tmp_path / "test"), *named("tested")])
    metric = TASKS[task_of(path)][2]
    if metric is not None:
        assert 0 <= metrics[metric] <= 100
    else:  # the answers of test-dev go to the server
        answers = json.loads((tmp_path / "work_dirs" / "vqav2_test-dev.json").read_text())
        assert [row["question_id"] for row in answers] == [1000, 1001]
        assert {row["answer"] for row in answers} <= set(official_files.VQA_CLASSES)


def test_blip2_is_trained_and_ranked_as_blip(small_task, tmp_path):
    """There is no recipe of LAVIS's for it: BLIP's, on another backbone and without its queue's schedule."""
    cfg = Config.fromfile(small_task(ROOT / "configs/lavis_blip/blip_flickr30k-retrieval_smarttrim-2x.py"))
    sizes = {**small(2, vision={"img_size": 32}, text={"max_position_embeddings": 64}), "num_query_token": 4}
    cfg.model.backbone = {"type": "LavisBackbone", "arch": "blip2_qformer", "ranks_texts": True, **sizes}
    cfg.model.budget.speedup = 1.2
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook["type"] != "RampUpHook"]
    cfg.val_cfg.top_k, cfg.test_cfg.top_k = 10, None
    config, work_dir = tmp_path / f"blip2_{tmp_path.parent.name}.py", tmp_path / "work"
    cfg.dump(config)
    cli.train([str(config), "--work-dir", str(work_dir)])
    logged = [json.loads(line) for line in next(work_dir.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    steps = [line for line in logged if "loss_itc" in line]
    assert len(steps) == 4 and all(line["loss_lm"] > 1 and line["loss_itm"] > 0 and "loss_distill" in line for line in steps)
    metrics = cli.test([str(config), str(work_dir / "iter_4.pth"), "--work-dir", str(tmp_path / "test")])
    assert 0 <= metrics[RECALL] <= 100 and any(RECALL in line for line in logged)


# of retrieval, which has a queue to tell apart, in test_lavis_retrieval.py
BY_HEART = [path for path in WHOLE if path.stem.endswith("-2x") and "retrieval" not in path.stem]


@pytest.mark.parametrize("path", BY_HEART, ids=lambda path: path.stem)
def test_eight_samples_are_learnt_by_heart(small_task, path):
    """Inputs reach the head, trimmers and all: the loss falls below what the frequencies of the answers give."""
    cfg = read_config(small_task(path), {"model.distillation": None, "model.budget": None})
    cfg.train_dataloader.batch_size = 8
    cfg.model.backbone.text.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    if "task_loss" in cfg.model:
        cfg.model.task_loss.label_smoothing = 0.0
    model = build_model(cfg).train()
    inputs = model.data_preprocessor(next(iter(build_loader(cfg, "train"))), True)["inputs"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    while len(losses) < 100 and (not losses or losses[-1] >= 0.06 * losses[0]):
        optimizer.zero_grad()
        loss = model.loss(inputs)["loss_task"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.06 * losses[0]
