"""The configs of mmpretrain's data sets, on small files: from each through a small model to a loss and its metrics."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import mmpretrain_files
import pytest
import torch
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.evaluator import Evaluator
from torch.utils.data import DataLoader

from smarttrim_mm import cli
from smarttrim_mm.engine.building import read_config
from smarttrim_mm.loops.all_pairs import AllPairsTestLoop
from smarttrim_mm.registry import DATASETS, METRICS, MODELS
from smarttrim_mm.testing import backbone_cases, excite

CONFIGS = Path(__file__).parents[2] / "configs/_base_/datasets"
NAMES = sorted(path.stem.removeprefix("mmpretrain_") for path in CONFIGS.glob("mmpretrain_*.py"))
SIZE = 16
TOKENIZER = {"type": "PretrainedTokenizer", "name_or_path": "data/bert-base-uncased"}
WORDS = {"blip_caption": {"prompt": "a picture of"}, "blip_nlvr": {"num_classes": 2}}
WRITTEN = {"num_beams": 1, "max_length": 14, "min_length": 13}
VQA, CAPTION = ("blip_vqa", {"type": "AnswerGeneration"}), ("blip_caption", {"type": "AnswerGeneration", "per_token": True})
MODEL = {
    "nlvr2": ("blip_nlvr", {"type": "AnswerCrossEntropy"}),
    "flickr30k_retrieval": ("blip_retrieval", {"type": "ContrastAndMatching"}),
    "coco_retrieval": ("blip_retrieval", {"type": "ContrastAndMatching"}),
    "coco_caption": CAPTION,
    "flickr30k_caption": CAPTION,
    "nocaps": CAPTION,
    **dict.fromkeys(("vqav2", "okvqa", "gqa", "vsr", "ocrvqa"), VQA),
}


@pytest.fixture(autouse=True)
def quick_loading(monkeypatch):
    monkeypatch.setattr("mmengine.dataset.base_dataset.gc.collect", lambda: 0)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes a data set and the tokenizer; returns its config at reduced size."""

    def make(name):
        monkeypatch.chdir(tmp_path)
        mmpretrain_files.write_bert(tmp_path / "data")
        mmpretrain_files.WRITERS[name](tmp_path / "data")
        cfg = read_config(str(CONFIGS / f"mmpretrain_{name}.py"))
        shrink([cfg.get(f"{split}_dataloader", {}) for split in ("train", "val", "test")])
        return cfg

    return make


def shrink(part):
    """Images of 16 pixels; captions scored without Java."""
    if isinstance(part, dict):
        kind = str(part.get("type"))
        if kind.endswith("RandomResizedCrop"):
            part["scale"] = SIZE
        elif kind.endswith("Resize") and "scale" in part:
            part["scale"] = (SIZE, SIZE)
        elif kind.endswith("RandomChoiceResize"):
            part["scales"] = [(SIZE - 1, SIZE - 1), (SIZE - 4, SIZE - 4)]
        elif kind.endswith("RandomTranslatePad"):
            part["size"] = SIZE
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            shrink(one)


def build_model(name, cfg):
    arch, loss = MODEL[name]
    case = next(case for key, case in backbone_cases().items() if key.startswith(f"LavisBackbone/{arch} "))
    case = {**case, **WORDS.get(arch, {}), "text": {**case["text"], "max_position_embeddings": 64}}
    if arch == "blip_vqa":
        case |= {"answers": cfg.answers, "tokenizer": TOKENIZER}
    if arch == "blip_caption":
        case |= {"tokenizer": TOKENIZER, "generation": WRITTEN}
    model = MODELS.build(
        {
            "type": "TrimmedVLM",
            "backbone": case,
            "policy": {"type": "Random", "keep_ratio": 0.8},
            "task_loss": loss,
            "data_preprocessor": cfg.data_preprocessor,
        }
    )
    excite(model.backbone)
    return model


def evaluator_of(metrics, dataset):
    metrics = copy.deepcopy(list(metrics))
    for metric in metrics:
        if metric.get("tokenizer") == "ptb":
            metric["tokenizer"] = "plain"  # which needs no Java
    evaluator = Evaluator([METRICS.build(metric) for metric in metrics])
    evaluator.dataset_meta = dataset.metainfo
    return evaluator


def test_every_data_set_is_tested():
    assert set(NAMES) == mmpretrain_files.WRITERS.keys() == {*MODEL, "refcoco"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("refcoco", "nocaps")])
def test_it_gives_a_loss(config, name):
    cfg = config(name)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    items = [dataset[i] for i in range(len(dataset))]
    assert all(item["inputs"].shape[-3:] == (3, SIZE, SIZE) and item["inputs"].dtype == torch.uint8 for item in items)
    ids = [int(item["data_samples"].question_ids) for item in items]
    assert len(set(ids)) == len(ids), "each item is known by a number of its own"
    model = build_model(name, cfg).train()
    some = items[::4] if "retrieval" in name else items[:8]  # of several images
    losses = model(**model.data_preprocessor(pseudo_collate(some), True), mode="loss")
    total = sum(value for key, value in losses.items() if "loss" in key)
    assert torch.isfinite(total) and total > 0
    total.backward()


@pytest.mark.parametrize("name", [name for name in NAMES if name in MODEL and "retrieval" not in name])
def test_its_metrics_judge_predictions(config, name, tmp_path):
    cfg = config(name)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    model = build_model(name, cfg).eval()
    evaluator = evaluator_of(cfg.val_evaluator, dataset)
    if name == "flickr30k_caption":  # mmpretrain's scores need Java
        pytest.importorskip("pycocoevalcap")
        evaluator.metrics[0].metric.compute_metrics = lambda results: {"captions": len({one["image_id"] for one in results})}
    with torch.no_grad():
        for i in range(len(dataset)):
            batch = pseudo_collate([dataset[i]])
            samples = model(**model.data_preprocessor(batch, False), mode="predict")
            evaluator.process(data_samples=samples, data_batch=batch)
    metrics = evaluator.evaluate(len(dataset))
    assert metrics["compute/speedup"] > 1
    expected = {
        "nlvr2": "accuracy/top1",
        "coco_caption": "caption/bleu_1",
        "flickr30k_caption": "captions",
        "vqav2": "vqa/accuracy_yes_no",
        "okvqa": "vqa/accuracy",
        "nocaps": None,
    }.get(name, "answer/accuracy")
    if expected is None:
        written = json.loads((tmp_path / "work_dirs/nocaps/nocap_pred.json").read_text())
        assert [one["image_id"] for one in written] == [0, 1] and all(one["caption"] for one in written)
    else:
        assert 0 <= metrics[expected] <= 100


@pytest.mark.parametrize("name", ["coco_retrieval", "flickr30k_retrieval"])
def test_retrieval_is_judged_alike(config, name):
    """Our recalls and, on the same scores, those of mmpretrain's metric: of texts in percent, without our images'."""
    cfg = config(name)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    model = build_model(name, cfg).eval()
    theirs = {"type": "MMPretrainMetric", "metric": {"type": "mmpretrain.RetrievalRecall", "topk": (1, 5, 10)}}
    evaluator = evaluator_of([*cfg.test_evaluator, theirs], dataset)
    seen = []
    process = evaluator.process
    evaluator.process = lambda data_samples, data_batch: (seen.extend(data_samples), process(data_samples, data_batch))
    loader = DataLoader(dataset, batch_size=2, sampler=DefaultSampler(dataset, shuffle=False), collate_fn=pseudo_collate)
    runner = SimpleNamespace(model=model, visualizer=SimpleNamespace(), call_hook=lambda *_, **__: None, logger=None)
    metrics = AllPairsTestLoop(runner, loader, evaluator, pairs_per_batch=8).run()
    assert len(seen) == 3 and seen[0].caption_ids == list(range(15)) and seen[1].image_id == 1
    scores = torch.stack([sample.scores for sample in seen])
    assert len(scores.unique()) > 40, "no ties, which the two count differently"
    for k in (1, 5, 10):
        assert metrics[f"retrieval/Recall@{k}"] == pytest.approx(100 * metrics[f"retrieval/text_r{k}"])
    # images for a text: mmpretrain's metric on the columns
    by_text = METRICS.build({"type": "mmpretrain.RetrievalRecall", "topk": (1,)})
    by_text.process(None, [{"pred_score": scores[:, i], "gt_label": torch.tensor([i // 5])} for i in range(15)])
    assert by_text.evaluate(15)["retrieval/Recall@1"] == pytest.approx(100 * metrics["retrieval/image_r1"])


def test_a_tie_counts_for_mmpretrain_as_the_sort_has_it():
    scores = torch.ones(3)
    metric = METRICS.build({"type": "mmpretrain.RetrievalRecall", "topk": (1,)})
    metric.process(None, [{"pred_score": scores, "gt_label": torch.tensor([i])} for i in range(3)])
    ours = METRICS.build({"type": "RetrievalRecall"})
    ours.process(None, [{"scores": scores, "image_id": i, "caption_image_ids": [0, 1, 2]} for i in range(3)])
    assert metric.evaluate(3)["retrieval/Recall@1"] == pytest.approx(100 / 3) and ours.evaluate(3)["retrieval/text_r1"] == 0


def test_a_run_trains_validates_and_tests(config, tmp_path, monkeypatch):
    """Of joined data sets, with the metric of mmpretrain beside ours."""
    monkeypatch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))  # it takes yapf a second
    cfg = config("vqav2")
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.val_evaluator.append({"type": "MMPretrainMetric", "metric": {"type": "mmpretrain.VQAAcc"}})
    cfg.dump("data.py")
    case = next(case for key, case in backbone_cases().items() if key.startswith("LavisBackbone/blip_vqa "))
    case["text"]["max_position_embeddings"] = 64
    base = CONFIGS.parent
    Path("small_mmpretrain_vqav2.py").write_text(
        f"""
_base_ = ["data.py", {str(base / "schedules/blip.py")!r}, {str(base / "default_runtime.py")!r}]
model = dict(
    type="TrimmedVLM",
    backbone=dict({case!r}, answers="data/vqav2/answers.json", tokenizer={TOKENIZER!r}),
    policy=dict(type="SmartTrim"),
    task_loss=dict(type="AnswerGeneration"),
)
train_cfg = dict(max_iters=2, val_interval=2)
param_scheduler = [dict(type="ConstantLR", by_epoch=False)]
log_level = "WARNING"
"""
    )
    cli.train(["small_mmpretrain_vqav2.py", "--work-dir", "work"])
    scalars = [json.loads(line) for path in Path("work").rglob("scalars.json") for line in path.read_text().splitlines()]
    found = {key: value for line in scalars for key, value in line.items()}
    assert 0 <= found["vqa/accuracy"] <= 1 and found["VQA/acc"] >= 100 * found["vqa/accuracy"] - 1e-4
    cli.test(["small_mmpretrain_vqav2.py", "work/iter_2.pth", "--work-dir", "test"])
    answers = json.loads((tmp_path / "work_dirs/vqav2_test-dev.json").read_text())
    assert [one["question_id"] for one in answers] == [1000, 1001] and all(one["answer"] for one in answers)


def test_visual_genome_does_not_meet_coco(config):
    dataset = DATASETS.build(config("vqav2").train_dataloader.dataset)
    samples = [dataset[i]["data_samples"] for i in range(len(dataset))]
    coco, genome = samples[:-2], samples[-2:]
    assert [sample.image_id for sample in coco] == [9, 9, 25, 42, 42]
    assert [sample.answer_weights for sample in genome] == [[[0.2]], [[0.2]]]
    assert [int(sample.question_ids) for sample in genome] == [1_000_009_000, 1_000_009_001]
    assert genome[0].image_id == genome[1].image_id > 1_000_000_000
    assert coco[0].answer_weights == [pytest.approx([0.6, 0.3, 0.1])] and len(coco[0].answer_ids[0]) == 3


def test_boxes_move_with_the_image(config):
    """A box of (3, 1) to (12, 5) in an image 16 wide and 8 high."""
    cfg = config("refcoco")
    test = DATASETS.build(cfg.val_dataloader.dataset)
    assert len(test) == 2
    sample = test[1]["data_samples"]
    assert sample.questions == ["the left dog"] and sample.image_id == 25 and sample.question_ids.tolist() == [1]
    assert sample.gt_bboxes.tolist() == [[3, 2, 12, 10]]
    train = DATASETS.build(cfg.train_dataloader.dataset)
    for _ in range(8):
        item = train[0]
        (left, top, right, bottom), pixels = item["data_samples"].gt_bboxes[0], item["inputs"]
        seen = pixels.sum(0) > 0
        rows, columns = seen.any(1).nonzero().squeeze(1), seen.any(0).nonzero().squeeze(1)
        height, width = len(rows), len(columns)
        assert (height, width) in ((15, 15), (12, 12))
        at = torch.stack(
            [(left - columns[0]) / width, (top - rows[0]) / height, (right - left) / width, (bottom - top) / height]
        )
        torch.testing.assert_close(at, torch.tensor([0.1875, 0.125, 0.5625, 0.5]))
    evaluator = evaluator_of(cfg.val_evaluator[:1], test)
    samples = [test[i]["data_samples"] for i in range(2)]
    for sample, box in zip(samples, ([3.0, 2.0, 12.0, 10.0], [3.0, 2.0, 12.0, 5.0]), strict=True):
        sample.set_field(torch.tensor([box]), "pred_bboxes")
    evaluator.process(data_samples=samples, data_batch=None)
    metrics = evaluator.evaluate(2)
    assert metrics["visual-grounding/miou"] == pytest.approx((1 + 24 / 64) / 2)
    assert metrics["visual-grounding/acc"] == pytest.approx(0.5)
