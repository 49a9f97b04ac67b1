import hashlib
import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate
from official_files import edit_line, write_emoji_sources, write_noto_emoji

from smarttrim_mm.datasets.noto_emoji import NotoEmoji
from smarttrim_mm.datasets.noto_emoji_files import main
from smarttrim_mm.engine.building import read_config
from smarttrim_mm.registry import DATASETS, MODELS

CONFIG = Path(__file__).parents[2] / "configs/_base_/datasets/noto_emoji.py"
SIZES = {"num_test_images": 8, "num_val_images": 4}


@pytest.fixture
def emoji(tmp_path) -> Path:
    return write_noto_emoji(tmp_path / "data/noto_emoji")


def build(root: Path, split: str = "train", **arguments) -> NotoEmoji:
    return NotoEmoji(split=split, data_root=str(root), **{**SIZES, **arguments})


def names(dataset: NotoEmoji) -> list[str]:
    return [dataset[i]["questions"][0] for i in range(len(dataset))]


def test_a_picture_has_one_name(emoji):
    item = build(emoji, "test")[0]
    number = item["image_id"]
    assert item["img_path"] == f"{emoji}/images/emoji_u{0x1F400 + number:x}.png"
    assert item["question_ids"] == [number] and item["questions"][0].endswith(f"no. {number}")
    assert "targets" not in item and build(emoji)[0]["targets"] == [0]


def test_the_splits_share_nothing_and_follow_the_hash(emoji):
    splits = {split: build(emoji, split) for split in ("train", "val", "test")}
    found = {split: [dataset[i]["image_id"] for i in range(len(dataset))] for split, dataset in splits.items()}
    assert {split: len(ids) for split, ids in found.items()} == {"train": 28, "val": 4, "test": 8}
    assert sorted(chain(*found.values())) == [*range(40)]
    order = sorted(range(40), key=lambda number: hashlib.sha256(f"{0x1F400 + number:x}".encode()).hexdigest())
    assert found["test"] == sorted(order[:8]) and found["val"] == sorted(order[8:12]) and found["train"] == sorted(order[12:])
    assert splits["train"].published_counts() == {"images": 3518} and splits["val"].published_counts() == {"images": 4}


def test_the_split_does_not_follow_the_files_order(emoji):
    before = set(names(build(emoji, "test")))
    path = emoji / "annotations.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert set(names(build(emoji, "test"))) == before


def test_what_the_converter_writes_is_read(tmp_path):
    main([*map(str, write_emoji_sources(tmp_path)), "--out", str(tmp_path / "out"), "--num-pictures", "7"])
    read = {
        split: names(build(tmp_path / "out", split, num_test_images=2, num_val_images=1)) for split in ("train", "val", "test")
    }
    rows = [json.loads(line) for line in (tmp_path / "out/annotations.jsonl").read_text().splitlines()]
    assert sorted(chain(*read.values())) == sorted(row["name"] for row in rows) and [*map(len, read.values())] == [4, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Blue CAT: no. 25"}, r"1 times the same name .* 'blue cat: no. 25': expected different ones"),
        ({"codepoints": "1f400"}, r"1 times the same codepoints .* '1f400'"),
        ({"name": " "}, r"annotations.jsonl, line 6: the name is empty"),
        ({"name": None}, r"annotations.jsonl, line 6 has name=None in .*type str"),
    ],
)
def test_bad_rows(emoji, changes, message):
    edit_line(emoji / "annotations.jsonl", 5, **changes)
    with pytest.raises(ValueError, match=message):
        build(emoji)
    dataset = build(emoji, lazy_init=True)
    dataset.problems = []
    dataset.full_init()
    assert len(dataset.problems) == 1


def test_bad_arguments(emoji):
    with pytest.raises(ValueError, match=r"split='dev': expected one of 'train', 'val', 'test'"):
        build(emoji, "dev")
    with pytest.raises(ValueError, match=r"num_test_images=36 and num_val_images=4: expected fewer than the 40 pictures"):
        build(emoji, num_test_images=36)
    (emoji / "images/emoji_u1f400.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"Noto emoji: 1 of \d+ images are missing, .*emoji_u1f400.png"):
        [build(emoji, split) for split in ("train", "val", "test")]


def test_config_gives_items_and_batches(emoji, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfg = read_config(str(CONFIG))
    for split in ("train", "val", "test"):
        dataset = DATASETS.build({**cfg[f"{split}_dataloader"].dataset, **SIZES})
        item = dataset[1]
        assert item["inputs"].shape == (3, 72, 72) and item["inputs"].dtype == torch.uint8
        (ids,) = item["data_samples"].input_ids
        assert (ids[0], ids[-1]) == (2, 3) and 1 not in ids and len(ids) == 8
        if split != "train":  # the corner of the picture is transparent
            assert item["inputs"][:, 0, 0].tolist() == [255] * 3 and item["inputs"][1:, 36, 36].tolist() == [100, 200]
        batch = MODELS.build(cfg.data_preprocessor)(pseudo_collate([item, dataset[0]]), split == "train")["inputs"]
        assert batch.images.shape == (2, 3, 72, 72) and batch.image_ids.tolist() == batch.sample_ids.tolist()
