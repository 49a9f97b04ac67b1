"""Every config of mmpretrain's BLIPs: key for key its models, and at reduced size trained, validated, resumed, tested."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mmpretrain
import mmpretrain_files
import official_files
import pytest
import torch
from mmengine.config import Config

from smarttrim_mm import cli
from smarttrim_mm.backbones.mmpretrain_checkpoint import plain_weights
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import random_inputs
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file

ROOT = Path(__file__).parents[2]
# grounding has a file of its own
CONFIGS = [path for path in sorted((ROOT / "configs/blip").glob("blip-base_*.py")) if "_refcoco_" not in path.stem]
PUBLIC = Path(mmpretrain.__file__).parent / ".mim/configs/blip"
RECALL = "retrieval/recall_mean"
_karpathy = partial(partial, official_files.write_karpathy, images=20)
# what writes the data into data/, and what a test measures; None: a file for a server
MAIN: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "vqav2": (lambda data: official_files.write_vqav2(data / "vqav2"), None),
    "nlvr2": (lambda data: official_files.write_nlvr2(data / "nlvr2"), "nlvr2/consistency"),
    "coco-retrieval": (lambda data: _karpathy(source="coco")(data / "coco"), RECALL),
    "flickr30k-retrieval": (lambda data: _karpathy(source="flickr30k")(data / "flickr30k"), RECALL),
    "coco-caption": (lambda data: official_files.write_coco_captions(data / "coco"), "caption/bleu_1"),
}
OTHERS: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "vqav2-vg": (mmpretrain_files.write_vqav2, None),
    "okvqa": (mmpretrain_files.write_okvqa, "vqa/accuracy"),
    "ocrvqa": (mmpretrain_files.write_ocrvqa, "answer/accuracy"),
    "gqa": (mmpretrain_files.write_gqa, "answer/accuracy"),
    "vsr": (mmpretrain_files.write_vsr, "answer/accuracy"),
    "flickr30k-caption": (mmpretrain_files.write_flickr30k, "compute/speedup"),
    "nocaps": (mmpretrain_files.write_nocaps, None),
}
TASKS = {**MAIN, **OTHERS}
MMPRETRAIN = {
    "vqav2": "vqa",
    "vqav2-vg": "vqa",
    "gqa": "vqa",
    "vsr": "vqa",
    "okvqa": "okvqa",
    "ocrvqa": "ocrvqa",
    "nlvr2": "nlvr",
    "coco-retrieval": "retrieval",
    "flickr30k-retrieval": "retrieval_flickr30k",
    "coco-caption": "caption",
    "flickr30k-caption": "caption_flickr30k",
    "nocaps": "nocaps",
}
SIZE = 32
BERT = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 120, "max_position_embeddings": 64}
VIT = {"embed_dims": 32, "num_layers": 3, "num_heads": 4, "feedforward_channels": 40}


def task_of(path: Path) -> str:
    return path.stem.split("_")[1]


def sections(content: Any) -> Iterator[dict]:
    """Every dict in a config."""
    if isinstance(content, Mapping):
        yield content
        content = list(content.values())
    if isinstance(content, list | tuple):
        for each in content:
            yield from sections(each)


def shrink(model: dict) -> None:
    """mmpretrain's config of a model, at a size for tests."""
    for section in list(sections(model)):
        if section.get("type") == "VisionTransformer":
            section.update(arch=VIT, img_size=SIZE, patch_size=4)
        elif "encoder_width" in section:  # the seventh layer of NLVR2's is the first with a layer that merges attentions
            section.update(BERT, encoder_width=32, num_hidden_layers=7 if "nlvr" in section else 2)
        elif section.get("type") == "Linear":
            section.update(in_features=32, out_features=12)
        elif section.get("type") == "ITCHead":
            section.update(embed_dim=12, queue_size=24)
        elif section.get("type") == "ITMHead":
            section.update(hidden_size=32)


@pytest.fixture
def small_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Writes the task's data, BERT's tokenizer, a public checkpoint and a small config; works in a folder of its own."""
    monkeypatch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
    monkeypatch.setattr("mmengine.dataset.base_dataset.gc.collect", lambda: 0)

    def make(path: Path) -> str:
        monkeypatch.chdir(tmp_path)
        TASKS[task_of(path)][0](tmp_path / "data")
        mmpretrain_files.write_bert(tmp_path / "data")
        cfg = Config.fromfile(path)
        shrink(cfg.model.backbone.model)
        torch.manual_seed(1)
        torch.save({"state_dict": MODELS.build(cfg.model.backbone).host.state_dict()}, "public.pth")
        cfg.model.backbone.checkpoint = str(tmp_path / "public.pth")
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            if name not in cfg:
                continue
            cfg[name].update(batch_size=4 if "retrieval" in path.stem else 2, num_workers=0, persistent_workers=False)
            for section in sections(cfg[name].dataset):
                if "scale" in section:
                    section["scale"] = SIZE if section["type"].endswith("RandomResizedCrop") else (SIZE, SIZE)
                if "num_classes" in section:
                    section["num_classes"] = len(official_files.VQA_CLASSES)
                if "num_images" in section:
                    section["num_images"] = None
        if "caption" in path.stem:  # the official scores need Java; an image of mmpretrain's Flickr30K is described five times
            scores = [{"type": "CaptionScores", "tokenizer": "plain"}] if "coco" in path.stem else []
            cfg.val_evaluator = cfg.test_evaluator = [*scores, {"type": "ComputeReport"}]
        if "train_cfg" in cfg:
            cfg.train_cfg.update(max_iters=4, val_interval=4)
        cfg.default_hooks.logger.interval, cfg.default_hooks.checkpoint.interval = 1, 2
        cfg.log_level = "WARNING"
        small = tmp_path / f"small_{path.stem}_{tmp_path.parent.name}.py"
        cfg.dump(small)
        return str(small)

    return make


def named(path: Path, name: str) -> list[str]:
    """Runs that begin within one second would be of one name, and share what mmengine keeps by it."""
    return ["--cfg-options", f"experiment_name={path.stem}_{name}"]


def test_every_task_has_its_configs():
    speeds = ["dense", *(f"smarttrim-{speed}x" for speed in ("1.5", "2", "2.5", "3"))]
    names = {f"blip-base_{task}_{speed}" for task in TASKS for speed in speeds}
    of_vg = {name for name in names if "vqav2-vg_smarttrim" in name}  # the task is VQAv2's
    assert {path.stem for path in CONFIGS} == names - of_vg


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_opens_with_its_launch_command(path):
    assert f".sh configs/blip/{path.name} " in path.read_text().partition("_base_ =")[0]
    speedup = Config.fromfile(path).model.get("budget", {}).get("speedup")
    assert speedup is None if path.stem.endswith("dense") else path.stem.endswith(f"-{speedup:g}x")


@pytest.mark.parametrize("task", TASKS)
def test_the_model_is_mmpretrains(task):
    """Key for key, but for what comes from the network: the tokenizer and the list of answers."""
    own = Config.fromfile(ROOT / f"configs/blip/blip-base_{task}_dense.py").model.backbone
    public = Config.fromfile(PUBLIC / f"blip-base_8xb32_{MMPRETRAIN[task]}.py").model.to_dict()
    public.pop("tokenizer")
    public.get("head", {}).pop("answer_list_path", None)
    if task.endswith("-retrieval"):  # the default is refused in several processes
        public["negative_all_rank"] = False
    assert own.model.to_dict() == public
    writes = public["type"] == "BlipCaption" or public.get("head", {}).get("inference_method") == "generate"
    assert ("generation" in own) == writes


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_names_mmpretrains_file_of_its_model(path):
    cfg, comment = Config.fromfile(path), path.read_text().partition("_base_ =")[0]
    index = Config.fromfile(PUBLIC / "metafile.yml")
    files = {
        model["Weights"].rpartition("/")[2]: Config.fromfile(PUBLIC.parents[1] / model["Config"]).model.type
        for model in index["Models"]
    }
    if "train_cfg" in cfg:
        (found,) = [name for name in files if f"model.backbone.checkpoint={name}\n" in comment]
        assert files[found] == cfg.model.backbone.model.type
    else:
        assert "work_dirs/blip-base_coco-caption_" in comment


def test_retrieval_is_for_several_processes(small_task, monkeypatch):
    cfg = Config.fromfile(small_task(ROOT / "configs/blip/blip-base_coco-retrieval_dense.py"))
    shape = MODELS.build(cfg.model).backbone.input_format
    inputs = random_inputs(shape, [5, 6], seed=1)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    assert MODELS.build(cfg.model).backbone.prepare(inputs).targets is not None
    del cfg.model.backbone.model["negative_all_rank"]
    with pytest.raises(ValueError, match=r"Set model\.backbone\.model\.negative_all_rank=False"):
        MODELS.build(cfg.model).backbone.prepare(inputs)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_can_be_built(small_task, path):
    cfg = Config.fromfile(small_task(path))
    model = MODELS.build({**cfg.model, "data_preprocessor": cfg.data_preprocessor})
    assert type(model.backbone).__name__ == cfg.model.backbone.model.type
    assert type(model.policy).__name__ == ("Dense" if path.stem.endswith("dense") else "SmartTrim")


@pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if task_of(path) in MAIN and path.stem.endswith(("_dense", "-2x"))],
    ids=lambda path: path.stem,
)
def test_train_validate_resume_and_test(small_task, path, tmp_path):
    config, work_dir = small_task(path), tmp_path / "work"
    cli.train([config, "--work-dir", str(work_dir)])
    straight = load_checkpoint_file(work_dir / "iter_4.pth")["state_dict"]
    public, trained = load_checkpoint_file(tmp_path / "public.pth")["state_dict"], plain_weights(straight)
    assert trained.keys() == public.keys()
    weights = [key for key in public if "queue" not in key]
    assert 0 < max(float((trained[key] - public[key]).abs().max()) for key in weights) < 1e-3, "4 steps of 2e-5 or less"
    (work_dir / "iter_4.pth").unlink()  # as if it had been killed before
    cli.train([config, "--work-dir", str(work_dir), "--resume", str(work_dir / "iter_2.pth"), *named(path, "resumed")])
    content = load_checkpoint_file(work_dir / "iter_4.pth")
    assert all(torch.equal(value, straight[key]) for key, value in content["state_dict"].items())
    arguments = ["--work-dir", str(tmp_path / "test"), *named(path, "tested")]
    metrics = cli.test([config, str(work_dir / "iter_4.pth"), *arguments])
    metric = MAIN[task_of(path)][1]
    if metric is not None:
        assert 0 <= metrics[metric] <= 100
    else:  # the answers of test-dev go to the server
        answers = json.loads((tmp_path / "work_dirs" / "vqav2_test-dev.json").read_text())
        assert [row["question_id"] for row in answers] == [1000, 1001]
        assert {row["answer"] for row in answers} <= set(official_files.VQA_CLASSES)


@pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if task_of(path) in OTHERS and (path.stem.endswith("-2x") or "-vg_" in path.stem)],
    ids=lambda path: path.stem,
)
def test_train_and_test(small_task, path, tmp_path):
    config, checkpoint = small_task(path), tmp_path / "work/iter_2.pth"
    if "train_cfg" in Config.fromfile(config):
        options = ["--cfg-options", "train_cfg.max_iters=2"]
        cli.train([config, "--work-dir", str(tmp_path / "work"), "--no-validate", *options])
    else:
        cfg = Config.fromfile(config)
        checkpoint.parent.mkdir()
        torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, checkpoint)
    metrics = cli.test([config, str(checkpoint), "--work-dir", str(tmp_path / "test"), *named(path, "tested")])
    metric = OTHERS[task_of(path)][1]
    assert metrics["compute/dense_multiply_adds"] > 0
    if metric is not None:
        assert 0 <= metrics[metric] <= 100
    else:
        assert list((tmp_path / "work_dirs").rglob("*.json"))
