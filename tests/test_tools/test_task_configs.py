"""Every config of METER's tasks at reduced size, on data sets in the official formats: train, validate, resume, test."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import official_files
import pytest
import torch
from public_checkpoints import meter_weights, write_lightning
from transformers.models.roberta.tokenization_roberta import bytes_to_unicode

from smarttrim_mm import cli
from smarttrim_mm.backbones.meter import METER
from smarttrim_mm.engine import conversion
from smarttrim_mm.engine.building import build_loader, build_model, model_batches, read_config
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file

CONFIGS = Path(__file__).parents[2] / "configs" / "meter"
_karpathy = partial(partial, official_files.write_karpathy, images=20)
TASKS = {
    "vqav2": (official_files.write_vqav2, "vqav2", None),
    "nlvr2": (official_files.write_nlvr2, "nlvr2", "nlvr2/consistency"),
    "snli-ve": (official_files.write_snli_ve, "snli_ve", "class/accuracy"),
    "flickr30k-retrieval": (_karpathy(source="flickr30k"), "flickr30k", "retrieval/recall_mean"),
    "coco-retrieval": (_karpathy(source="coco"), "coco", "retrieval/recall_mean"),
}
PUBLIC = {"vqav2": "vqa", "nlvr2": "nlvr2", "snli-ve": "snli", "flickr30k-retrieval": "flickr", "coco-retrieval": "flickr"}
# UPop and FTKD need a teacher: they have tests of their own
NAMES = sorted(path.stem for path in CONFIGS.glob("meter-base_*_*.py") if not re.search(r"_\d+px_|_upop-|_ftkd-", path.stem))
# eight samples that differ
_ANSWERS = ["red", "blue", "yes", "no", "2", "green", "yes", "no"]
EIGHT = {
    "vqav2": partial(
        official_files.write_vqav2,
        train={image: [(f"What is {image}{i}?", [_ANSWERS[2 * image + i]] * 10) for i in (0, 1)] for image in range(4)},
    ),
    "nlvr2": partial(
        official_files.write_nlvr2, sentences=[(f"{pair}-0-{i}", str(i == pair % 2)) for pair in range(4) for i in (0, 1)]
    ),
    "snli-ve": partial(
        official_files.write_snli_ve,
        rows=[("100", f"Sentence {i}.", ("contradiction", "neutral", "entailment")[i % 3]) for i in range(8)],
    ),
    "flickr30k-retrieval": partial(official_files.write_karpathy, source="flickr30k", images=10),
    "coco-retrieval": partial(official_files.write_karpathy, source="coco", images=10),
}
_TEXT = {"vocab_size": 261, "max_position_embeddings": 60}  # bytes, and five more; METER's 50 tokens
_HEAD = {"num_classes": None, "head_name": "vqa_classifier", "images_per_text": 1}  # METER's settings and their defaults
_SMALL = """
_base_ = {base!r}
_layers = dict(num_attention_heads=4, intermediate_size=64)
model = dict(
    backbone=dict(
        vision=dict(image_size=32, patch_size=8, width=48, layers=2, heads=4),
        text=dict(hidden_size=32, num_hidden_layers=1, **_layers, **{text!r}),
        fusion=dict(hidden_size=64, num_hidden_layers=1, **_layers),
    )
)
_size = dict(image_size=32)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=_size)
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=_size)
test_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=_size)
train_cfg = dict(max_iters=4, val_interval=4)
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=5)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))  # not amid the gradients that are accumulated
log_level = "WARNING"
"""
_VQA = """
model["backbone"]["num_classes"] = {classes}
for _loader in (train_dataloader, val_dataloader, test_dataloader):
    _loader["dataset"] = dict(**_size, num_classes={classes})
"""
_RETRIEVAL = """
train_dataloader["dataset"] = dict(**_size, false_captions=3)
val_dataloader["dataset"] = dict(**_size, num_images=2)
val_cfg = test_cfg = dict(pairs_per_batch=4)
optim_wrapper = dict(accumulative_counts=2)
"""


@pytest.fixture(autouse=True)
def plain_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run dumps its config five times, and to lay out so long a one takes yapf a second."""
    monkeypatch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))


def task_of(name: str) -> str:
    return name.split("_")[1]


@pytest.fixture
def small_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes the task's data, roberta's tokenizer and a small config; works in a folder of its own, as paths are relative."""

    def make(name: str) -> str:
        monkeypatch.chdir(tmp_path)
        write, folder, _ = TASKS[task_of(name)]
        write(tmp_path / "data" / folder)
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *bytes_to_unicode().values(), "<mask>"]
        roberta = tmp_path / "data" / "roberta-base"
        official_files.write_json(roberta / "vocab.json", {token: index for index, token in enumerate(tokens)})
        official_files.write_json(roberta / "config.json", {"model_type": "roberta"})
        (roberta / "merges.txt").write_text("#version: 0.2\n")
        more = {
            "vqav2": _VQA.format(classes=len(official_files.VQA_CLASSES)),
            "flickr30k": _RETRIEVAL,
            "coco": _RETRIEVAL,
        }.get(folder, "")
        path = tmp_path / f"small_{name}_{tmp_path.parent.name}.py"
        path.write_text(_SMALL.format(base=str(CONFIGS / f"{name}.py"), text=_TEXT) + more)
        return str(path)

    return make


def test_every_task_has_its_configs():
    assert {task_of(name) for name in NAMES} == TASKS.keys() == EIGHT.keys() and len(NAMES) == len(TASKS) * 5


@pytest.mark.parametrize("name", NAMES)
def test_train_validate_resume_and_test(small_task, name, tmp_path):
    config, work_dir = small_task(name), tmp_path / "work"
    cli.train([config, "--work-dir", str(work_dir)])
    straight = load_checkpoint_file(work_dir / "iter_4.pth")["state_dict"]
    (work_dir / "iter_4.pth").unlink()  # as if it had been killed before
    cli.train([config, "--work-dir", str(work_dir), "--resume", str(work_dir / "iter_2.pth")])
    content = load_checkpoint_file(work_dir / "iter_4.pth")
    assert all(torch.equal(value, straight[key]) for key, value in content["state_dict"].items())
    assert all(torch.isfinite(value).all() for value in content["state_dict"].values() if value.is_floating_point())
    speedup = tmp_path / "compute.json"
    arguments = ["--work-dir", str(tmp_path / "test"), "--speedup-report", str(speedup), "--out", str(tmp_path / "out.json")]
    metrics = cli.test([config, str(work_dir / "iter_4.pth"), *arguments])
    predictions = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert len({prediction["image_id"] for prediction in predictions}) >= 1
    if "retrieval" in name:
        assert all(len(best["text_ids"]) == 10 and best["scores"] == sorted(best["scores"])[::-1] for best in predictions)
    metric = TASKS[task_of(name)][2]
    if metric is not None:
        assert 0 <= metrics[metric] <= 1
    else:  # the answers of test-dev go to the server
        answers = json.loads((tmp_path / "work_dirs" / "vqav2_test-dev.json").read_text())
        assert [row["question_id"] for row in answers] == [1000, 1001]
        assert {row["answer"] for row in answers} <= set(official_files.VQA_CLASSES)
    assert json.loads(speedup.read_text())["dense_multiply_adds"] > 0
    cfg = read_config(config)
    model = build_model(cfg, str(work_dir / "iter_4.pth"))
    with torch.no_grad():
        for inputs in model_batches(model, build_loader(cfg, "test", model)):
            masked, packed = (model.trace(inputs, kind)[0] for kind in ("masked", "packed"))
            torch.testing.assert_close(masked, packed, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_of_another_task_is_refused(small_task, tmp_path):
    nlvr2, vqa = small_task("meter-base_nlvr2_dense"), small_task("meter-base_vqav2_dense")
    cli.train([nlvr2, "--work-dir", str(tmp_path / "nlvr2"), "--no-validate"])
    checkpoint = str(tmp_path / "nlvr2" / "iter_2.pth")
    uses = {
        "test": lambda folder: cli.test([vqa, checkpoint, *folder]),
        "load_from": lambda folder: cli.train([vqa, *folder, "--cfg-options", f"load_from={checkpoint}"]),
        "resume": lambda folder: cli.train([vqa, *folder, "--resume", checkpoint]),
    }
    for name, use in uses.items():
        with pytest.raises(ValueError, match="The checkpoint is of another task than the config's model; nothing was") as error:
            use(["--work-dir", str(tmp_path / name)])
        assert "its head is 'nlvr2_classifier', the model's 'vqa_classifier'\n" in str(error.value), name
        assert not list((tmp_path / name).glob("*.pth"))
    with pytest.raises(ValueError, match="is a checkpoint of this package already"):
        cli.train([vqa, "--work-dir", str(tmp_path / "init"), "--cfg-options", f"model.backbone.init_from.meter={checkpoint}"])


def test_data_of_another_task_are_refused(small_task, tmp_path):
    """Sentences with 3 labels for a head of 6 answers."""
    vqa, snli = small_task("meter-base_vqav2_dense"), small_task("meter-base_snli-ve_dense")
    data = read_config(snli).train_dataloader.to_dict()
    config = tmp_path / f"mixed_{tmp_path.parent.name}.py"
    config.write_text(f"_base_ = {vqa!r}\ntrain_dataloader = dict(_delete_=True, **{data!r})\n")
    with pytest.raises(ValueError, match=r"train_dataloader\.dataset is SNLI-VE with 3 answers, and the model's head has 6"):
        cli.train([str(config), "--work-dir", str(tmp_path / "work")])


@pytest.mark.parametrize("task", TASKS)
def test_a_public_checkpoint_is_converted_and_tested(small_task, tmp_path, task):
    """From the file of METER's authors to the metrics of the task's own config; logits are those of the public weights."""
    config, name = small_task(f"meter-base_{task}_dense"), PUBLIC[task]
    text = {**METER.small_configs()["shared images"]["text"], **_TEXT}
    sizes = {**METER.small_configs()["shared images"], "text": text}
    with Path(config).open("a") as file:
        file.writelines(f"model['backbone'][{part!r}] = {sizes[part]!r}\n" for part in ("vision", "text", "fusion"))
    answers = len(official_files.VQA_CLASSES)
    public = meter_weights(name, token_types=3 if task == "nlvr2" else 2, answers=answers, words=261, positions=60)
    source, ours = write_lightning(tmp_path / "public.ckpt", public), str(tmp_path / "ours.pth")
    backbone = read_config(config).model.backbone
    guessed = conversion.backbone_config(public)
    assert all(guessed.get(key, default) == backbone.get(key, default) for key, default in _HEAD.items())
    conversion.main([str(source), ours, "--config", config])
    found = tmp_path / "found.json"
    metrics = cli.test([config, ours, "--work-dir", str(tmp_path / "test"), "--out", str(found)])

    cfg = read_config(config)
    model = build_model(cfg, ours)
    direct = METER(**{key: value for key, value in backbone.items() if key != "type"}).eval()
    direct.load_state_dict({key: public[key] for key in direct.state_dict()})
    predictions: list[dict] = []
    with torch.no_grad():
        for inputs in model_batches(model, build_loader(cfg, "test", model)):
            expected = direct.host_forward(inputs)
            torch.testing.assert_close(model(inputs), expected, atol=1e-5, rtol=0)
            if model.ranks_texts:  # one batch is the whole split
                predictions += [{"text_ids": inputs.text_ids[row].tolist()} for row in expected.argsort(-1, descending=True)]
            else:
                predictions += [{"prediction": row} for row in expected.argmax(-1).tolist()]
    rows = json.loads(found.read_text())["predictions"]
    assert [{key: row[key] for key in one} for row, one in zip(rows, predictions, strict=True)] == predictions
    if TASKS[task][2] is not None:
        assert 0 <= metrics[TASKS[task][2]] <= 1


@pytest.mark.parametrize("task", TASKS)
def test_eight_samples_are_learnt_by_heart(small_task, task, tmp_path):
    """Inputs reach the head: the loss of a batch falls to a tenth, trimmers and all."""
    cfg = read_config(small_task(f"meter-base_{task}_smarttrim-2x"), {"model.distillation": None, "model.budget": None})
    EIGHT[task](tmp_path / "data" / TASKS[task][1])
    cfg.train_dataloader.batch_size = 8
    model = build_model(cfg).train()
    inputs = model.data_preprocessor(next(iter(build_loader(cfg, "train"))), training=True)["inputs"]
    assert len({tuple(row) for row in inputs.input_ids.tolist()}) >= 8
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    floor = float(torch.special.entr(inputs.targets).sum()) if inputs.targets.is_floating_point() else 0.0
    losses: list[float] = []
    while len(losses) < 500 and (not losses or losses[-1] - floor > 0.1 * losses[0]):
        optimizer.zero_grad()
        loss = model.loss(inputs)["loss_task"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] - floor < 0.1 * losses[0]
