import hashlib
import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from PIL import Image

from smarttrim_mm.datasets.easy_vqa import EasyVQA
from smarttrim_mm.datasets.given import given_pipeline
from smarttrim_mm.datasets.load_mosaic import LoadMosaic
from smarttrim_mm.datasets.mosaic_vqa import MosaicVQA
from smarttrim_mm.datasets.multi_image import PackVLInputs
from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.engine.check_data import main as check_data
from smarttrim_mm.evaluation.answer_dump import AnswerDump
from smarttrim_mm.hooks.check_vocabulary import check_vocabulary
from smarttrim_mm.registry import DATASETS, MODELS

CONFIGS = Path(__file__).parents[2] / "configs"
DATA = CONFIGS / "_base_/datasets/mosaic_vqa.py"
ASKED = (("is it red?", "no"), ("what color is it?", "blue"))
WRITTEN = [[text, answer, image] for image in range(12) for text, answer in ASKED]


def records(dataset: EasyVQA | MosaicVQA) -> list[dict]:
    return [dataset.get_data_info(i) for i in range(len(dataset))]


@pytest.fixture(scope="module")
def mosaics() -> dict[str, MosaicVQA]:
    return {split: MosaicVQA(split=split, num_mosaics=150) for split in ("train", "val", "test")}


def test_the_first_mosaic_is_the_published_one(mosaics):
    """Whoever reports results on these mosaics must have the same ones."""
    first = mosaics["train"].get_data_info(0)
    assert first["mosaic"] == {"grid": 3, "cell_size": 64, "cells": [(0, 0), (0, 1), (1, 0), (1, 2), (2, 0)]}
    assert [Path(path).name for path in first["img_paths"]] == ["418.png", "1693.png", "509.png", "3701.png", "2777.png"]
    assert list(zip(first["questions"], first["answers"], strict=True)) == [
        ("second row, third column: does the image contain a rectangle?", "yes"),
        ("second row, third column: what shape is present?", "rectangle"),
        ("first row, second column: does the image contain a triangle?", "no"),
        ("third row, first column: what is the color of the circle?", "gray"),
    ]
    assert first["facts"][0] == {"filled_cells": 5, "asked_cell": [2, 3], "source_question_id": 35682}
    assert (first["image_id"], first["question_ids"]) == (0, [0, 1, 2, 3])
    image = LoadMosaic()(dict(first))["img"]
    assert image.shape == (192, 192, 3) and image.dtype == np.uint8
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == "274fe4ee83a0f8fa"


def test_a_mosaic_depends_on_seed_split_and_number_alone(mosaics):
    few = MosaicVQA(split="val", num_mosaics=20)
    assert records(few) == records(mosaics["val"])[:20]
    other = MosaicVQA(split="val", num_mosaics=20, seed=1)
    assert not any(one["img_paths"] == two["img_paths"] for one, two in zip(records(few), records(other), strict=True))
    more = MosaicVQA(split="val", num_mosaics=20, questions_per_mosaic=6)
    assert [one["questions"][:4] for one in records(more)] == [one["questions"] for one in records(few)]
    assert [one["question_ids"][:4] for one in records(more)] == [one["question_ids"] for one in records(few)]
    state = np.random.get_state()[1].tolist()
    MosaicVQA(split="val", num_mosaics=2)
    assert np.random.get_state()[1].tolist() == state


def test_splits_share_no_picture_and_no_id(mosaics):
    every = {split: records(dataset) for split, dataset in mosaics.items()}
    paths = {split: {path for one in found for path in one["img_paths"]} for split, found in every.items()}
    assert not any(paths[one] & paths[two] for one, two in (("train", "val"), ("train", "test"), ("val", "test")))
    for split, found in paths.items():
        assert found <= {one["img_path"] for one in records(EasyVQA(split=split))}
    images = [one["image_id"] for found in every.values() for one in found]
    questions = [number for found in every.values() for one in found for number in one["question_ids"]]
    assert len(set(images)) == len(images) == 450 and len(set(questions)) == len(questions)
    assert [found[3]["image_id"] for found in every.values()] == [3, 10_000_003, 20_000_003]
    assert every["test"][3]["question_ids"][1] == 2_000_000_301


@pytest.mark.parametrize("split", ["val", "test"])
def test_questions_and_answers_are_easy_vqas_about_the_asked_cell(mosaics, split):
    known = {}
    for one in records(EasyVQA(split=split)):
        for j, number in enumerate(one["question_ids"]):
            known[number] = (one["img_path"], one["questions"][j], one["answers"][j], one["targets"][j], one["answer_types"][j])
    places = ("first", "second", "third")
    for one in records(mosaics[split]):
        at = dict(zip(one["mosaic"]["cells"], one["img_paths"], strict=True))
        assert len(set(one["img_paths"])) == len(at) == one["facts"][0]["filled_cells"]
        assert len({fact["source_question_id"] for fact in one["facts"]}) == len(one["questions"]) == len(one["question_ids"])
        for i, fact in enumerate(one["facts"]):
            row, column = (number - 1 for number in fact["asked_cell"])
            path, text, answer, target, kind = known[fact["source_question_id"]]
            assert at[row, column] == path
            assert one["questions"][i] == f"{places[row]} row, {places[column]} column: {text}"
            assert (one["answers"][i], one["targets"][i], one["answer_types"][i]) == (answer, target, kind)
            assert one["gt_answers"][i] == [answer] * 10


def test_the_asked_cell_shows_its_picture_and_the_others_are_empty(mosaics):
    record = next(one for one in records(mosaics["test"]) if 1 < len(one["img_paths"]) < 9)
    image = LoadMosaic(empty=(1, 2, 3))(dict(record))["img"]
    filled = dict(zip(record["mosaic"]["cells"], record["img_paths"], strict=True))
    for row in range(3):
        for column in range(3):
            cell = image[row * 64 : (row + 1) * 64, column * 64 : (column + 1) * 64]
            if (row, column) in filled:
                assert (cell == cv2.imread(filled[row, column])).all()
            else:
                assert (cell == (1, 2, 3)).all()


def test_what_shows_a_shape_is_a_sixth_of_the_patches_and_in_the_asked_cell_one_in_thirty(mosaics):
    """What configs/meter/mosaic_smarttrim.py says of its target."""
    shown, asked = [], []
    for one in records(mosaics["test"]):
        cells = LoadMosaic()(dict(one))["img"].reshape(3, 64, 3, 64, 3).swapaxes(1, 2).astype(int)
        differs = np.abs(cells - np.median(cells, axis=(2, 3), keepdims=True)).max(-1) > 8  # of 256 levels; from the background
        patches = differs.reshape(3, 3, 4, 16, 4, 16).any((3, 5)).sum((2, 3))
        shown.append(patches.sum() / 144)
        asked += [patches[fact["asked_cell"][0] - 1, fact["asked_cell"][1] - 1] / 144 for fact in one["facts"]]
    assert 1 / 7 < np.mean(shown) < 1 / 5 and 1 / 35 < np.mean(asked) < 1 / 26


def test_from_one_cell_to_all_are_filled(mosaics):
    counts = Counter(one["facts"][0]["filled_cells"] for found in mosaics.values() for one in records(found))
    assert sorted(counts) == list(range(1, 10)) and min(counts.values()) > 25  # 50 expected of each
    cells = Counter(tuple(fact["asked_cell"]) for one in records(mosaics["train"]) for fact in one["facts"])
    assert len(cells) == 9 and min(cells.values()) > 30  # 67 expected of each
    few = MosaicVQA(split="val", num_mosaics=40, min_filled=3, max_filled=4)
    assert {len(one["img_paths"]) for one in records(few)} == {3, 4}


def test_types_of_questions_take_turns_unless_told_otherwise(mosaics):
    for one in records(mosaics["train"]):
        kinds = Counter(one["answer_types"])
        assert kinds == {"yes/no": 2, "other": 2} or len(one["img_paths"]) == 1
    as_asked = MosaicVQA(split="train", num_mosaics=150, even_types=False)
    share = np.mean([kind == "yes/no" for one in records(as_asked) for kind in one["answer_types"]])
    assert 0.68 < share < 0.8


def test_other_grids_and_sizes(make_root):
    root = make_root(WRITTEN)
    dataset = MosaicVQA(
        split="test",
        data_root=root,
        num_mosaics=5,
        grid=2,
        cell_size=8,
        questions_per_mosaic=1,
        pipeline=[LoadMosaic(), PackVLInputs()],
    )
    assert dataset.metainfo["dataset_name"] == "MosaicVQA" and dataset.metainfo["classes"] == ("red", "blue", "yes", "no")
    for i in range(5):
        item = dataset[i]
        assert item["inputs"].shape == (3, 16, 16)
        sample = item["data_samples"]
        assert len(sample.questions) == 1 and sample.facts[0]["filled_cells"] == len(sample.img_paths) <= 4
    with pytest.raises(ValueError, match=r"max_filled=4: the split 'train' of easy-VQA has 2 pictures.*none twice"):
        MosaicVQA(split="train", data_root=root, num_val_images=10, num_mosaics=5, grid=2)


def test_single_pairs_keep_their_own_facts():
    grouped = MosaicVQA(split="val", num_mosaics=10)
    single = MosaicVQA(split="val", num_mosaics=10, group_questions=False)
    assert [one["facts"][0] for one in records(single)] == [fact for one in records(grouped) for fact in one["facts"]]
    assert [one["question_ids"][0] for one in records(single)] == [n for one in records(grouped) for n in one["question_ids"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "dev"}, "split='dev': expected one of 'train', 'val', 'test'"),
        ({"num_mosaics": 0}, "num_mosaics=0: expected a whole number, 1 to 10000000"),
        ({"grid": 1}, "grid=1: expected a whole number, 2 to 8"),
        ({"grid": 9}, "grid=9: expected a whole number, 2 to 8"),
        ({"grid": 2.5}, "grid=2.5: expected a whole number"),
        ({"cell_size": 0}, "cell_size=0: expected a whole number, at least 1"),
        ({"questions_per_mosaic": 101}, "questions_per_mosaic=101: expected a whole number, 1 to 100"),
        ({"max_filled": 10}, "max_filled=10: expected a whole number, 1 to 9"),
        ({"min_filled": 0}, "min_filled=0: expected a whole number, 1 to 9"),
        ({"min_filled": 5, "max_filled": 4}, "min_filled=5: expected a whole number, 1 to 4"),
        ({"seed": -1}, "seed=-1: expected a whole number, at least 0"),
        ({"num_images": 5}, "num_images=5: the split 'val' has 3 images"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        MosaicVQA(**{"split": "val", "num_mosaics": 3, **changes})


def test_a_missing_picture_is_named(make_root):
    root = Path(make_root(WRITTEN))
    (root / "test/images/4.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"MosaicVQA: 1 of 12 images are missing, .*4\.png.*easy-vqa==1\.0"):
        MosaicVQA(split="test", data_root=str(root), num_mosaics=50)


def test_the_step_that_loads(tmp_path):
    for empty in ((1, 2), (0, 0, 256)):
        with pytest.raises(ValueError, match=r"empty=.*expected three numbers 0-255"):
            LoadMosaic(empty=empty)
    whole = np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3)
    cv2.imwrite(str(tmp_path / "whole.png"), whole)
    assert (LoadMosaic()({"img_path": str(tmp_path / "whole.png")})["img"] == whole).all()
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:50])
    record = {"img_paths": [str(tmp_path / "broken.png")], "mosaic": {"grid": 2, "cell_size": 6, "cells": [(0, 0)]}}
    with pytest.raises(ValueError, match=r"broken\.png' cannot be read"):
        LoadMosaic()(record)


def test_a_mosaic_in_memory_can_be_given():
    """As the inferencer does: what loads files takes a picture as well."""
    whole = Image.fromarray(np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3))
    found = given_pipeline([LoadMosaic()])({"img_path": whole})["img"]
    assert (found == np.asarray(whole)[..., ::-1]).all()


def test_predictions_say_how_full_the_mosaic_was():
    item = MosaicVQA(split="val", num_mosaics=1, pipeline=[LoadMosaic(), PackVLInputs()])[0]["data_samples"]
    count = len(item.questions)
    sample = item.to_dict() | {
        "pred_scores": torch.eye(13)[:count],
        "trim": {"multiply_adds": torch.arange(count, dtype=torch.float64)},
    }
    dump = AnswerDump()
    dump.process(None, [sample])
    dump.evaluate(1)
    json.dumps(dump.answers)
    for i, answer in enumerate(dump.answers):
        assert answer["multiply_adds"] == i and answer["question"] == item.questions[i]
        assert {key: answer[key] for key in item.facts[i]} == item.facts[i]
        assert answer["filled_cells"] == len(item.img_paths)


def test_facts_cannot_replace_a_prediction():
    sample = {"pred_scores": torch.eye(2)[:1], "question_ids": [7], "questions": ["?"], "image_id": 0}
    sample["facts"] = [{"score": 1.0}]
    with pytest.raises(ValueError, match="facts of question 7 has score, which the record of its answer has too"):
        AnswerDump().process(None, [sample])


def test_config_gives_batches():
    config = Config.fromfile(DATA)
    words, longest = set(), 0
    for name in ("train", "val", "test"):
        settings = config[f"{name}_dataloader"].dataset
        dataset = DATASETS.build({**settings, "num_mosaics": 300})
        tokenizer, limit = dataset.pipeline.transforms[1].tokenizer, dataset.pipeline.transforms[1].max_length
        for record in records(dataset):
            for text in record["questions"]:
                ids = tokenizer(text, 100).tolist()
                words |= set(ids)
                longest = max(longest, len(ids))
        samples = [dataset[i] for i in range(3)]
    assert longest <= limit and words == set(range(tokenizer.vocab_size)) - {1, 3}  # every word, no <pad>, no <unk>
    batch = MODELS.build(config.data_preprocessor)(pseudo_collate(samples))["inputs"]
    assert batch.images.shape == (3, 3, 192, 192) and len(batch.targets) == 12


def test_data_can_be_checked(capsys):
    options = [f"{split}_dataloader.dataset.num_mosaics=20" for split in ("train", "val", "test")]
    with pytest.raises(SystemExit) as end:
        check_data([str(DATA), "--num-images", "3", "--cfg-options", *options])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "used: 20 items, 80 questions, " in text and text.count("nothing is wrong") == 3


@pytest.mark.parametrize(
    ("name", "guides"),
    [("dense", None), ("smarttrim", [{"image", "text"}] * 6), ("local-only", [set()] * 6)],
)
def test_a_training_step(name, guides):
    cfg = read_config(str(CONFIGS / f"meter/mosaic_{name}.py"))
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.num_mosaics = 4
    torch.manual_seed(0)
    model = build_model(cfg).train()
    check_vocabulary(model, DATASETS.build(cfg.train_dataloader.dataset), "train_dataloader.dataset")
    batch = model.data_preprocessor(next(iter(build_loader(cfg, "train", model))), True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model.loss(batch["inputs"])["loss_task"]
    for _ in range(3):
        losses = model.loss(batch["inputs"])
        optimizer.zero_grad()
        sum(value for key, value in losses.items() if "loss" in key).backward()
        optimizer.step()
    assert losses["loss_task"] < before and all(torch.isfinite(value).all() for value in losses.values())
    if guides is not None:
        trimmers = list(model.policy.token_trimmers.values())
        assert [set(trimmer.guides) for trimmer in trimmers] == guides  # of four image layers and two fusion layers
        assert all(trimmer.bias.grad.abs() > 0 for trimmer in trimmers)


def test_fine_tuning_starts_where_the_dense_training_ends():
    iterations = read_config(str(CONFIGS / "meter/mosaic_dense.py")).train_cfg.max_iters
    for name in ("smarttrim", "local-only"):
        assert f"load_from=work_dirs/mosaic_dense/iter_{iterations}.pth" in (CONFIGS / f"meter/mosaic_{name}.py").read_text()
