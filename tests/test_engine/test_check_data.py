from pathlib import Path

import pytest
from official_files import VQA_CLASSES, edit_json, edit_line, write_coco_captions, write_noto_emoji, write_vqav2

from smarttrim_mm.engine.check_data import main

EASY_VQA = Path(__file__).parents[2] / "configs/_base_/datasets/easy_vqa.py"
EMOJI = EASY_VQA.with_name("noto_emoji.py")
CAPTIONS = EASY_VQA.with_name("blip_coco_caption.py")
PUBLISHED = {"train": (3, 4), "val": (1, 2), "test-dev": (1, 2)}
QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    """A config of a small VQAv2 whose numbers are the published ones."""
    write_vqav2(tmp_path / "vqav2")
    monkeypatch.setattr("smarttrim_mm.datasets.vqav2._PUBLISHED", PUBLISHED)
    path = tmp_path / "config.py"
    path.write_text(
        "pipeline = [dict(type='TokenizeQuestions', tokenizer=dict(type='PretrainedTokenizer', name_or_path='no/where'))]\n"
        f"common = dict(type='VQAv2', data_root={str(tmp_path / 'vqav2')!r}, num_classes={len(VQA_CLASSES)})\n"
        "train_dataloader = dict(dataset=dict(**common, pipeline=pipeline, split='train'))\n"
        "val_dataloader = dict(dataset=dict(**common, pipeline=pipeline, split='val'))\n"
        "test_dataloader = dict(dataset=dict(**common, pipeline=pipeline, split='test-dev'))\n"
    )
    return path


def check(config: Path, *options: str) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(config), *options])
    return end.value.code


def test_complete_data(config, capsys):
    assert check(config) == 0
    text = capsys.readouterr().out
    assert "train: type='VQAv2', split='train', data_root=" in text and text.count("nothing is wrong") == 3
    assert "used: 2 items, 3 questions, 2 image files" in text  # what no class answers is left out of training
    assert "in the files: 4 questions, as 4 are published" in text and "in the files: 3 images, as 3" in text
    assert "val: opening images" in text and "opened: 1 images" in text


def test_everything_that_is_wrong_is_listed(config, tmp_path, capsys):
    root = tmp_path / "vqav2"
    edit_json(root / QUESTIONS, "questions", 1, question="")
    (root / "train2014/COCO_train2014_000000000009.jpg").unlink()
    broken = root / "train2014/COCO_train2014_000000000025.jpg"
    broken.write_bytes(broken.read_bytes()[:40])
    (root / "v2_OpenEnded_mscoco_test-dev2015_questions.json").unlink()
    assert check(config) == 1
    train, val, test = capsys.readouterr().out.split(": type='VQAv2'")[1:]
    assert "2 problems" in train and "0009.jpg: no such image" in train and "0025.jpg' cannot be read" in train
    assert "1 questions were read, but 2 are published" in val and "question 42001 of image 42 is empty" in val
    assert "no file" in test and "test-dev2015_questions.json; expected v2_OpenEnded" in test


def test_few_of_many_problems_are_shown(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("smarttrim_mm.engine.check_data._SHOWN", 2)
    for path in (tmp_path / "vqav2/train2014").iterdir():
        path.unlink()
    assert check(config, "--cfg-options", "train_dataloader.dataset.test_mode=True") == 1
    text = capsys.readouterr().out
    assert "3 problems, the first are\n" in text and text.count("no such image") == 2


def test_only_so_many_images_are_opened(config, capsys):
    assert check(config, "--num-images", "1") == 0
    assert "opened: 1 images" in capsys.readouterr().out
    assert check(config, "--all-images") == 0
    assert "opened: 2 images" in capsys.readouterr().out


def test_easy_vqa_can_be_checked(capsys):
    assert check(EASY_VQA, "--num-images", "3") == 0
    assert "used: 400 items, 3,812 questions, 400 image files" in capsys.readouterr().out


def test_captions_can_be_checked(tmp_path, capsys):
    root = write_coco_captions(tmp_path / "coco")
    (root / "val2014/COCO_val2014_000000000042.jpg").unlink()
    changes = [f"{split}_dataloader.dataset.data_root={root}" for split in ("train", "val", "test")]
    assert check(CAPTIONS, "--cfg-options", *changes) == 1
    train, val, test = capsys.readouterr().out.split(": type='COCOKarpathyCaption'")[1:]
    assert "used: 4 items, 4 questions, 2 image files" in train
    assert "2 images were read, but 113,287 are published" in train and "4 questions were read, but 566,747" in train
    assert "0042.jpg: no such image" in val and "2 images were read, but 5,000" in test


def test_emoji_can_be_checked(tmp_path, capsys):
    root = write_noto_emoji(tmp_path / "emoji")
    edit_line(root / "annotations.jsonl", 3, name="red dog: no. 0")
    changes = [f"{split}_dataloader.dataset.data_root={root}" for split in ("train", "val", "test")]
    small = ["dataset.num_test_images=8", "dataset.num_val_images=4"]
    changes += [f"{split}_dataloader.{change}" for split in ("train", "val", "test") for change in small]
    assert check(EMOJI, "--cfg-options", *changes) == 1
    train, val, test = capsys.readouterr().out.split(": type='NotoEmoji'")[1:]
    assert "used: 28 items, 28 questions, 28 image files" in train and "28 images were read, but 3,518 are published" in train
    assert "1 times the same name for several pictures, the first is 'red dog: no. 0'" in val and "opened: 4 images" in val
    assert "in the files: 8 images, as 8 are published" in test


def test_what_cannot_be_checked(config, tmp_path, capsys):
    path = tmp_path / "other.py"
    path.write_text("val_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[], ignore_keys=None))")
    assert check(path) == 1 and "ConcatDataset is no VisionLanguageDataset" in capsys.readouterr().out
    path.write_text("val_dataloader = dict(dataset=dict(type='MMPretrainDataset', dataset=dict(type='mmpretrain.GQA')))")
    assert check(path) == 1 and "MMPretrainDataset is no VisionLanguageDataset" in capsys.readouterr().out
    path.write_text("model = None")
    with pytest.raises(ValueError, match=r"other\.py has none of train_dataloader, val_dataloader, test_dataloader"):
        main([str(path)])
    with pytest.raises(ValueError, match="--num-images 0: expected at least 1"):
        main([str(config), "--num-images", "0"])
