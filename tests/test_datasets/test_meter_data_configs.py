"""The configs of METER's data sets, on small files in the official formats."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate
from official_files import VQA_CLASSES, write_karpathy, write_nlvr2, write_snli_ve, write_vqav2

from smarttrim_mm.engine.building import read_config
from smarttrim_mm.registry import DATASETS, MODELS, TRANSFORMS

CONFIGS = Path(__file__).parents[2] / "configs/_base_/datasets"
FILES = {
    "vqav2": (lambda root: write_vqav2(root / "vqav2"), 576, 50),
    "nlvr2": (lambda root: write_nlvr2(root / "nlvr2"), 288, 50),
    "snli_ve": (lambda root: write_snli_ve(root / "snli_ve"), 384, 50),
    "flickr30k_retrieval": (lambda root: write_karpathy(root / "flickr30k", "flickr30k", images=20), 384, 40),
    "coco_retrieval": (lambda root: write_karpathy(root / "coco", "coco", images=20), 384, 40),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with data/roberta-base, whose tokens are single letters."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *map(chr, range(ord("!"), ord("~") + 1)), "Ġ", "<mask>"]
    tokenizer = tmp_path / "data/roberta-base"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_config_gives_items(name, folder):
    write, size, length = FILES[name]
    write(folder / "data")
    cfg = read_config(str(CONFIGS / f"{name}.py"))
    for split in ("train", "val", "test"):
        settings = cfg[f"{split}_dataloader"].dataset
        if name == "vqav2":
            settings.num_classes = len(VQA_CLASSES)
        settings.pop("num_images", None)
        dataset = DATASETS.build(settings)
        item = dataset[0]
        assert item["inputs"].shape[-3:] == (3, size, size) and item["inputs"].dtype == torch.uint8
        assert item["inputs"].ndim == (4 if name == "nlvr2" else 3)
        sample = item["data_samples"]
        assert len(sample.input_ids) == len(sample.questions) == len(sample.question_ids)
        assert max(len(ids) for ids in sample.input_ids) <= length
        if "retrieval" in name:
            assert len(sample.questions) == (16 if split == "train" else 5)
        elif split == "train":
            assert len(sample.questions) == 1
    if name != "nlvr2":
        batch = MODELS.build(cfg.data_preprocessor)(pseudo_collate([item]))["inputs"]
        assert batch.images.shape == (1, 3, size, size)


def test_every_step_of_the_augmentation_runs(folder):
    augment = read_config(str(CONFIGS / "meter_images.py")).augment
    write_snli_ve(folder / "data/snli_ve")
    for policy in augment.policies:
        pipeline = [{"type": "LoadImage"}, {**augment, "policies": [policy], "num_policies": 1}]
        dataset = DATASETS.build({"type": "SNLIVE", "split": "dev", "pipeline": pipeline})
        assert dataset[0]["img"].shape == (6, 8, 3) and dataset[0]["img"].dtype == "uint8"


def test_strengths_of_the_augmentation_are_meters():
    steps = {type(step).__name__: step for step in TRANSFORMS.build(read_config(str(CONFIGS / "meter_images.py")).augment)}
    strengths = {name: round(step.random_magnitude(), 6) for name, step in steps.items() if step.magnitude_range is not None}
    assert strengths == {
        "Rotate": 9.0,
        "Solarize": 76.8,
        "SolarizeAdd": 33.0,
        **dict.fromkeys(("ColorTransform", "Contrast", "Brightness", "Sharpness"), -0.36),  # METER: a factor of 0.64
        "Shear": 0.09,
        "Translate": 0.048,
    }
    assert all(step.prob == 1.0 for step in steps.values())


def test_a_size_is_changed_in_one_line(folder):
    write_vqav2(folder / "data/vqav2")
    path = folder / "config.py"
    path.write_text(
        f"_base_ = {str(CONFIGS / 'vqav2.py')!r}\n"
        "train_dataloader = val_dataloader = test_dataloader = dict(dataset=dict(image_size=32, num_classes=6))\n"
    )
    cfg = read_config(str(path))
    for split in ("train", "val", "test"):
        assert DATASETS.build(cfg[f"{split}_dataloader"].dataset)[0]["inputs"].shape == (3, 32, 32)
