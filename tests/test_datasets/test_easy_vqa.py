import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from smarttrim_mm.datasets.easy_vqa import EasyVQA
from smarttrim_mm.datasets.multi_image import PackVLInputs
from smarttrim_mm.datasets.transforms import LoadImage
from smarttrim_mm.datasets.vision_language import VisionLanguageDataset
from smarttrim_mm.datasets.vqav2 import VQAv2
from smarttrim_mm.evaluation.vqa_accuracy import VQAAccuracy
from smarttrim_mm.registry import DATASETS, METRICS, MODELS

CONFIG = Path(__file__).parents[2] / "configs/_base_/datasets/easy_vqa.py"


def records(dataset: EasyVQA) -> list[dict]:
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def count_questions(dataset: EasyVQA) -> int:
    return sum(len(record["questions"]) for record in records(dataset))


@pytest.fixture(scope="module")
def official() -> dict[str, EasyVQA]:
    return {split: EasyVQA(split=split) for split in ("train", "val", "test")}


def test_official_sizes(official):
    assert {split: len(dataset) for split, dataset in official.items()} == {"train": 3600, "val": 400, "test": 1000}
    assert count_questions(official["train"]) + count_questions(official["val"]) == 38575
    assert count_questions(official["test"]) == 9673


def test_official_content(official):
    classes = official["test"].metainfo["classes"]
    assert len(classes) == 13 and classes[:5] == ("circle", "green", "red", "gray", "yes")
    first = official["test"].get_data_info(0)
    assert (first["questions"][0], first["answers"][0], first["image_id"]) == ("what is the red shape?", "triangle", 0)
    assert first["question_ids"][:2] == [1_000_000, 1_000_001] and first["targets"][0] == classes.index("triangle")


def test_it_is_vqav2s_small_twin(official, make_root):
    first = official["test"].get_data_info(0)
    assert first["gt_answers"][0] == ["triangle"] * 10 and first["answer_types"][0] == "other"
    kinds = {
        answers[0]: kind
        for item in records(official["val"])
        for answers, kind in zip(item["gt_answers"], item["answer_types"], strict=True)
    }
    assert len(kinds) == 13 and {answer for answer, kind in kinds.items() if kind == "yes/no"} == {"yes", "no"}
    assert set(kinds.values()) == {"yes/no", "other"}
    easy, full = (Config.fromfile(CONFIG.with_name(name)) for name in ("easy_vqa.py", "vqav2.py"))
    assert easy.val_evaluator == full.val_evaluator == easy.test_evaluator
    assert issubclass(EasyVQA, VisionLanguageDataset) and issubclass(VQAv2, VisionLanguageDataset)

    dataset = EasyVQA(split="test", data_root=make_root(), pipeline=[LoadImage(), PackVLInputs()])
    metric = VQAAccuracy()
    metric.dataset_meta = {"classes": ("red", "blue", "yes", "no")}
    for i in range(3):  # six right answers: red, yes, no; blue; no, no
        item = dataset[i]["data_samples"].to_dict()
        metric.process(None, [item | {"pred_scores": torch.eye(4)[[3] * len(item["questions"])]}])
    assert metric.evaluate(3) == {"vqa/accuracy": 3 / 6, "vqa/accuracy_yes_no": 3 / 4, "vqa/accuracy_other": 0.0}


def test_splits_share_no_image_and_no_question_id(official):
    images = {split: {record["img_path"] for record in records(dataset)} for split, dataset in official.items()}
    ids = [
        question_id for dataset in official.values() for record in records(dataset) for question_id in record["question_ids"]
    ]
    assert sum(map(len, images.values())) == len(set.union(*images.values())) == 5000
    assert len(ids) == len(set(ids)) == 38575 + 9673


def test_held_out_images_are_fixed_by_the_seed(make_root):
    root = make_root([["is it?", "yes", i] for i in range(20)])
    chosen = [
        [record["image_id"] for record in records(EasyVQA(split="val", data_root=root, num_val_images=5, val_seed=seed))]
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] == [1, 8, 10, 18, 19] != chosen[2]


def test_train_draws_questions_from_numpys_generator(make_root):
    dataset = EasyVQA(split="train", data_root=make_root(), num_val_images=0, questions_per_image=2)
    draws = []
    for seed in (0, 0, 1, 2, 3):
        np.random.seed(seed)
        draws.append([dataset[0]["questions"] for _ in range(4)])
    assert draws[0] == draws[1] and len({str(draw) for draw in draws}) > 1
    assert all(len(questions) == len(set(questions)) == 2 for draw in draws for questions in draw)
    assert dataset[1]["question_ids"] == [3]  # it has only one
    record = dataset[0]
    assert [record["answers"][i] for i in range(2)] == [dataset.metainfo["classes"][target] for target in record["targets"]]


def test_ungrouped_items_are_single_pairs(make_root):
    dataset = EasyVQA(split="test", data_root=make_root(), group_questions=False)
    assert [record["question_ids"] for record in records(dataset)] == [[1_000_000 + i] for i in range(6)]
    assert [record["image_id"] for record in records(dataset)] == [0, 0, 0, 1, 2, 2]


def test_num_images(make_root):
    root = make_root()
    assert count_questions(EasyVQA(split="test", data_root=root, num_images=2)) == 4
    with pytest.raises(ValueError, match="num_images=4: the split 'test' has 3 images"):
        EasyVQA(split="test", data_root=root, num_images=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split='dev': expected one of 'train', 'val', 'test'"),
        ({"split": "train", "questions_per_image": 0}, "questions_per_image=0: expected at least 1"),
        ({"split": "train", "num_val_images": 3}, "num_val_images=3: expected 0 to 2"),
    ],
)
def test_bad_arguments(make_root, arguments, message):
    with pytest.raises(ValueError, match=message):
        EasyVQA(data_root=make_root(), **arguments)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([" ", "yes", 1], r"test/questions.json: question 1000006 of image 1 is empty \(' '\)"),
        (
            ["is it?", "yess", 1],
            "question 1000006 of image 1 has the unknown answer 'yess'; the nearest known ones are 'yes', 'red'",
        ),
        (["is it?", "yes"], r"test/questions.json, row 6 is \['is it\?', 'yes'\]: expected a list of \[question"),
        (["is it?", "yes", "1"], "row 6 is .*'1'"),
    ],
)
def test_bad_rows(make_root, row, message):
    root = Path(make_root())
    path = root / "test" / "questions.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), row]))
    with pytest.raises(ValueError, match=message):
        EasyVQA(split="test", data_root=str(root))


@pytest.mark.parametrize(("text", "message"), [("[[", "questions.json is no JSON"), ('{"a": 1}', "holds \"{'a': 1}\"")])
def test_malformed_questions(make_root, text, message):
    root = Path(make_root())
    (root / "train" / "questions.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        EasyVQA(split="train", data_root=str(root))


@pytest.mark.parametrize("name", ["answers.txt", "test/questions.json"])
def test_missing_files(make_root, name):
    root = Path(make_root())
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no file {root / name}; expected answers.txt.*Correct data_root"):
        EasyVQA(split="test", data_root=str(root))


def test_empty_answers(make_root):
    with pytest.raises(ValueError, match=r"answers\.txt is empty"):
        EasyVQA(split="test", data_root=make_root(answers=()))


def test_missing_image(make_root):
    root = Path(make_root())
    (root / "test/images/2.png").unlink()
    with pytest.raises(FileNotFoundError, match=f"easy-VQA: 1 of 3 images are missing, the first is {root}/test/images/2.png"):
        EasyVQA(split="test", data_root=str(root))


def test_missing_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install easy-vqa==1\.0"):
        EasyVQA(split="test")


def test_training_does_not_swallow_a_truncated_image(make_root):
    root = Path(make_root())
    path = root / "train/images/1.png"
    path.write_bytes(path.read_bytes()[:50])
    dataset = EasyVQA(split="train", data_root=str(root), num_val_images=0, pipeline=[{"type": "LoadImage"}])
    with pytest.raises(ValueError, match=f"img_path='{path}' cannot be read"):
        dataset[1]


def test_training_does_not_swallow_none(make_root):
    dataset = EasyVQA(split="train", data_root=make_root(), num_val_images=0, pipeline=[lambda record: None])
    with pytest.raises(ValueError, match=r"train/images/0\.png': a step of the pipeline returned None"):
        dataset[0]


def test_config_gives_batches_and_metrics():
    config = Config.fromfile(CONFIG)
    words = set()
    for name in ("train", "val", "test"):
        dataset = DATASETS.build(config[f"{name}_dataloader"].dataset)
        words |= {text for record in records(dataset) for text in record["questions"]}
        samples = [dataset[i] for i in range(3)]
        assert all(3 not in ids for item in samples for ids in item["data_samples"].input_ids)  # 3: <unk>
    batch = MODELS.build(config.data_preprocessor)(pseudo_collate(samples))["inputs"]
    assert batch.images.shape == (3, 3, 64, 64) and -1 <= batch.images.min() < batch.images.max() <= 1
    assert len(batch.targets) == sum(len(item["data_samples"].questions) for item in samples)
    tokenizer = dataset.pipeline.transforms[1].tokenizer
    assert tokenizer.vocab_size == 31 and len(words) == 107
    assert max(len(tokenizer(text, 100)) for text in words) <= dataset.pipeline.transforms[1].max_length
    assert all(3 not in tokenizer(text, 100) for text in words)
    for metric in config.test_evaluator:
        METRICS.build(metric)
