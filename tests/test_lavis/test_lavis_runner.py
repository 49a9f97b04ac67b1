"""LAVIS's own runner and tasks, on its own data formats, on a CPU."""

import json
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lavis.common.config import Config
from lavis.tasks import setup_task
from omegaconf import OmegaConf
from PIL import Image
from small_lavis import SIZES

import smarttrim_mm.lavis as plugin
from smarttrim_mm.evaluation.caption_scores import caption_scores
from smarttrim_mm.lavis.captioner import scores

COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
TRIMMING = {
    "distillation": {"type": "SelfDistillation"},
    "budget": {"type": "RatioBudget", "token_ratio": 0.6, "head_ratio": 0.6},
    "schedules": [{"type": "CurriculumHook", "end": 0.5}],
    "epochs": "${run.max_epoch}",
}


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """LAVIS's loaders sleep between epochs."""
    monkeypatch.setattr("lavis.datasets.datasets.dataloader_utils.time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        color = COLORS["red" if i % 2 else "blue"]
        Image.fromarray(np.full((20, 24, 3), color, dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def coco_vqa(tmp_path, images):
    """Questions about the color of six images, in LAVIS's and in VQAv2's format; both colors count as right."""
    asked = [{"image": f"{i}.png", "question": "What color is it?", "question_id": 10 + i} for i in range(6)]
    answers = [{"answer": color, "answer_id": n} for n, color in enumerate(["red"] * 5 + ["blue"] * 5)]
    kinds = {"question_type": "what color", "answer_type": "other"}
    annotations = [{"question_id": 10 + i, "image_id": i, "answers": answers, **kinds} for i in range(6)]
    about = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    files = {
        "train.json": [{**each, "answer": ["red", "red", "blue"][: 1 + i % 3]} for i, each in enumerate(asked)],
        "val.json": asked,
        "answers.json": ["red", "blue", "green"],
        "questions.json": {**about, "questions": asked},
        "annotations.json": {"annotations": annotations},
    }
    paths = write(tmp_path, files)
    splits = {"train": paths[:1], "val": paths[1:], "test": paths[1:]}
    return {"coco_vqa": data(splits, images, "blip_question")}


@pytest.fixture
def nlvr(tmp_path, images):
    pairs = [(i, j) for i in range(3) for j in range(3, 5)]
    found = [{"images": [f"{i}.png", f"{j}.png"], "sentence": "Is it blue?", "label": str(i % 2 == j % 2)} for i, j in pairs]
    paths = write(tmp_path, {"train.json": found, "dev.json": found})
    return {"nlvr": data({"train": paths[:1], "val": paths[1:], "test": paths[1:]}, images, "blip_caption")}


@pytest.fixture
def flickr30k(tmp_path, images):
    """Captions of six images, of which the evaluation has one to three each."""
    words = [f"{color} {thing}" for thing in ("dog", "cat", "image") for color in ("blue", "red")]
    captions = [[f"a {words[i]}", f"{words[i]} on the grass", f"it is {words[i]}"][: 1 + i % 3] for i in range(6)]
    files = {
        "train.json": [
            {"image": f"{i}.png", "caption": caption, "image_id": f"flickr_{i}"} for i in range(6) for caption in captions[i]
        ],
        "val.json": [{"image": f"{i}.png", "caption": captions[i]} for i in range(6)],
    }
    paths = write(tmp_path, files)
    return {"flickr30k": data({"train": paths[:1], "val": paths[1:], "test": paths[1:]}, images, "blip_caption")}


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return [str(folder / name) for name in files]


def data(splits, images, texts):
    return {
        "vis_processor": {kind: {"name": f"blip_image_{kind}", "image_size": 16} for kind in ("train", "eval")},
        "text_processor": {kind: {"name": texts} for kind in ("train", "eval")},
        "build_info": {
            "annotations": {split: {"url": paths, "storage": paths} for split, paths in splits.items()},
            "images": {"storage": str(images)},
        },
    }


@pytest.fixture
def captions(tmp_path, images):
    """Six images with two captions each, in LAVIS's format, and their references in COCO's."""
    said = {i: [f"a {'red' if i % 2 else 'blue'} image", f"it is {'red' if i % 2 else 'blue'}"] for i in range(6)}
    for path in list(images.iterdir()):  # LAVIS reads the numbers of images off such names
        path.rename(path.with_suffix(".jpg"))
    train = [{"image": f"{i}.jpg", "caption": text, "image_id": f"coco_{i}"} for i, both in said.items() for text in both]
    rows = [{"image_id": i, "id": 10 * i + n, "caption": text} for i, both in said.items() for n, text in enumerate(both)]
    files = {
        "train.json": train,
        "val.json": [{"image": f"{i}.jpg", "caption": both} for i, both in said.items()],
        "references.json": {"annotations": rows, "images": [{"id": i} for i in said]},
    }
    paths = write(tmp_path, files)
    sets = data({"train": paths[:1], "val": paths[1:2], "test": paths[1:2]}, images, "blip_caption")
    sets["text_processor"]["train"]["prompt"] = "a picture of "
    return {"coco_caption": sets}, {"val": paths[2], "test": paths[2]}


@pytest.fixture
def run(tmp_path, settings):
    """Runs a config as LAVIS's train.py does, which its wheel lacks."""

    def start(arch, datasets, task, job, model=None, trimming=TRIMMING, **others):
        section = settings(arch, {"type": "SmartTrim", "stable_init": False}, trimming, **(model or {}))
        section.arch, section.model_type = f"smarttrim_{arch}", next(iter(model_class(arch).PRETRAINED_MODEL_CONFIG_DICT))
        how = {
            "task": task,
            "runner": "smarttrim_runner",
            "device": "cpu",
            "distributed": False,
            "num_workers": 0,
            "batch_size_train": 2,
            "batch_size_eval": 4,
            "max_epoch": 2,
            "lr_sched": "linear_warmup_cosine_lr",
            "init_lr": 1e-3,
            "min_lr": 0,
            "weight_decay": 0.05,
            "output_dir": str(tmp_path / "out"),
            "train_splits": ["train"],
            "valid_splits": ["val"],
            "test_splits": ["test"],
            "evaluate": False,
            **others,
        }
        path = tmp_path / f"{job}.yaml"
        # a fresh container, so that what refers to the run is resolved in LAVIS's config
        OmegaConf.save(OmegaConf.create({"model": OmegaConf.to_container(section), "datasets": datasets, "run": how}), path)
        cfg = Config(Namespace(cfg_path=str(path), options=None))
        task = setup_task(cfg)
        built = task.build_datasets(cfg)
        runner = plugin.registry.get_runner_class(cfg.run_cfg.runner)
        return runner(cfg=cfg, job_id=job, task=task, model=task.build_model(cfg), datasets=built)

    return start


def model_class(arch):
    return plugin.registry.get_model_class(f"smarttrim_{arch}")


def logged(runner):
    lines = (runner.output_dir / "log.txt").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith('{"')]


@pytest.mark.parametrize("arch", ["blip_vqa", "albef_vqa"])
def test_vqa(run, coco_vqa, lavis_own, arch):
    runner = run(arch, coco_vqa, "vqa", arch)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    lines = logged(runner)
    assert [float(line["train_loss"]) > 0 for line in lines if "train_loss" in line] == [True, True]
    validated = [line for line in lines if "val_agg_metrics" in line]
    assert len(validated) == 2 and validated[0]["val_agg_metrics"] > 0 and validated[0]["val_speedup"] > 1
    assert [line["val_samples"] for line in validated] == [6, 6]
    moved = {name for name, value in runner.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in moved} == {"visual_encoder", "text_encoder", "text_decoder", "policy"}

    saved = runner.output_dir / "checkpoint_best.pth"
    answers = json.loads((runner.output_dir / "result" / "test_vqa_result.json").read_text())
    assert [each["question_id"] for each in answers] == list(range(10, 16))
    again = run(arch, coco_vqa, "vqa", f"{arch}-again", model={"load_finetuned": True, "finetuned": str(saved)}, evaluate=True)
    found = again.evaluate(skip_reload=True)
    assert found["test"]["agg_metrics"] == validated[0]["val_agg_metrics"]
    assert json.loads((again.output_dir / "result" / "test_vqa_result.json").read_text()) == answers
    weights = torch.load(saved)["model"]
    own = lavis_own(again.model)
    missing, unexpected = own.load_state_dict(
        {name: value for name, value in weights.items() if not name.startswith("policy.")}, strict=False
    )
    assert not unexpected and all("_m." in name for name in missing)


def test_nlvr2(run, nlvr):
    runner = run("blip_nlvr", nlvr, "multimodal_classification", "nlvr")
    runner.train()
    validated = [line for line in logged(runner) if "val_acc" in line]
    assert len(validated) == 2 and 0 <= validated[0]["val_acc"] <= 1 and validated[0]["val_samples"] == 6
    model = runner.model
    assert model.policy.progress == model.trimmed.budget.progress == 1.0
    assert {"loss_task", "loss_distill", "loss_budget_tokens"} <= model.last_losses.keys()


def test_written_answers(run, coco_vqa):
    runner = run("blip_vqa", coco_vqa, "vqa", "written", evaluate=True, inference_method="generate", num_beams=3)
    metrics = runner.evaluate(skip_reload=True)
    assert metrics["test"]["samples"] == 6 and metrics["test"]["multiply_adds"] > 0


def test_a_training_can_be_resumed(run, nlvr):
    first = run("albef_nlvr", nlvr, "multimodal_classification", "first", valid_splits=[], test_splits=[], max_epoch=1)
    first.train()
    saved = first.output_dir / "checkpoint_0.pth"
    options = {"resume_ckpt_path": str(saved), "valid_splits": [], "test_splits": []}
    second = run("albef_nlvr", nlvr, "multimodal_classification", "second", **options)
    second.train()
    assert second.start_epoch == 1
    assert (second.output_dir / "checkpoint_1.pth").is_file() and not (second.output_dir / "checkpoint_0.pth").exists()
    assert second.model.policy.progress == 1.0


WRITE = {"num_beams": 2, "max_len": 12, "min_len": 5, "caption_tokenizer": "plain"}


def test_captions(run, captions, lavis_own):
    datasets, references = captions
    runner = run("blip_caption", datasets, "smarttrim_captioning", "captions", ground_truth=references, **WRITE)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    validated = [line for line in logged(runner) if "val_CIDEr" in line]
    assert [line["val_samples"] for line in validated] == [6, 6] and validated[0]["val_multiply_adds"] > 0
    assert validated[0]["val_agg_metrics"] == pytest.approx(validated[0]["val_CIDEr"] + validated[0]["val_Bleu_4"])
    moved = {name for name, value in runner.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in moved} == {"visual_encoder", "text_decoder", "policy"}
    found = json.loads((runner.output_dir / "result" / "test_epochbest.json").read_text())
    assert sorted(each["image_id"] for each in found) == list(range(6))
    saved = str(runner.output_dir / "checkpoint_best.pth")
    model = {"load_finetuned": True, "finetuned": saved}
    again = run(
        "blip_caption", datasets, "smarttrim_captioning", "again", model=model, evaluate=True, ground_truth=references, **WRITE
    )
    metrics = again.evaluate(skip_reload=True)["test"]
    assert metrics["agg_metrics"] == pytest.approx(max(line["val_agg_metrics"] for line in validated))
    expected = caption_scores(
        {each["image_id"]: each["caption"] for each in found},
        {i: [f"a {color} image", f"it is {color}"] for i, color in enumerate(["blue", "red"] * 3)},
        "plain",
    )
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    weights = {name: value for name, value in torch.load(saved)["model"].items() if not name.startswith("policy.")}
    missing, unexpected = lavis_own(again.model).load_state_dict(weights, strict=False)
    assert not missing and not unexpected


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ground_truth": {"val": "references.json"}}, ValueError, r"run.ground_truth is .* and has no 'test'"),
        ({}, ValueError, r"run.ground_truth is {} and has no 'val'; name the file .* coco_karpathy_val_gt.json"),
        ({"ground_truth": {"val": "no/file", "test": "no/file"}}, FileNotFoundError, "run.ground_truth.val is 'no/file'"),
        ({"caption_tokenizer": "moses"}, ValueError, "tokenizer='moses': expected one of 'ptb', 'plain'"),
    ],
    ids=["one split", "none", "missing", "tokenizer"],
)
def test_captions_are_refused_before_they_are_written(run, captions, monkeypatch, tmp_path, changes, error, message):
    datasets, _ = captions
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run("blip_caption", datasets, "smarttrim_captioning", "refused", **{**WRITE, **changes})


def test_references_in_another_format(tmp_path):
    (tmp_path / "results.json").write_text('[{"image_id": 1, "caption": "a cat"}]')
    (tmp_path / "references.json").write_text('[{"image_id": 1}]')
    with pytest.raises(ValueError, match=r"references.json is no file of references in COCO's format"):
        scores(str(tmp_path / "results.json"), str(tmp_path / "references.json"), "plain")
    (tmp_path / "references.json").write_text('{"annotations": [{"image_id": 2, "caption": "a dog"}]}')
    with pytest.raises(ValueError, match=r"captions of 1 images .* and 2 are only in one of them, such as \[1, 2\]"):
        scores(str(tmp_path / "results.json"), str(tmp_path / "references.json"), "plain")


@pytest.mark.parametrize("arch", ["blip_retrieval", "albef_retrieval", "blip2_qformer"])
def test_retrieval(run, flickr30k, arch):
    fusing = {"fusion_layer": 1} if arch.startswith("albef") else {}
    text = {**SIZES["text"], "max_position_embeddings": 40, **fusing}  # LAVIS tests with 35 tokens
    sizes = {"text": text, "queue_size": 8, "embed_dim": 16, "num_query_token": 4, "freeze_vit": False}
    runner = run(arch, flickr30k, "retrieval", arch, model=sizes, k_test=3, use_dist_eval_sampler=False, batch_size_train=4)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    runner.train()
    lines = logged(runner)
    assert [float(line["train_loss"]) > 0 for line in lines if "train_loss" in line] == [True, True]
    validated = [line for line in lines if "val_agg_metrics" in line]
    assert [line["val_samples"] for line in validated] == [6, 6] and validated[0]["val_speedup"] > 1
    assert 0 < validated[-1]["val_txt_r5"] <= 100 and validated[-1]["val_r_mean"] > 0
    moved = {
        name.partition(".")[0] for name, value in runner.model.state_dict().items() if not torch.equal(value, before[name])
    }
    reader = "Qformer" if arch == "blip2_qformer" else "text_encoder"
    assert moved >= {"visual_encoder", reader, "vision_proj", "text_proj", "itm_head", "policy", "temp"}

    saved = runner.output_dir / "checkpoint_best.pth"
    options = {"model": {**sizes, "load_finetuned": True, "finetuned": str(saved)}, "evaluate": True}
    again = run(arch, flickr30k, "retrieval", f"{arch}-again", k_test=128, use_dist_eval_sampler=False, **options)
    found = again.evaluate(skip_reload=True)["test"]
    assert found["samples"] == 6 and found["txt_r10"] == found["img_r10"] == 100
