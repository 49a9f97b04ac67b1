"""COCO's captions as BLIP's authors split them."""

import json

import pytest
import torch
from official_files import write_coco_captions, write_json

from smarttrim_mm.datasets.coco_caption import COCOKarpathyCaption
from smarttrim_mm.models.data_preprocessor import VisionLanguagePreprocessor
from smarttrim_mm.registry import TRANSFORMS

WORDS = ["a", "picture", "of", "cat", "is", "no", "two", "dogs", "image", "9", "25"]
TOKENIZER = {"type": "WordTokenizer", "words": WORDS}


@pytest.fixture
def root(tmp_path):
    return write_coco_captions(tmp_path)


@pytest.fixture
def change(root):
    def make(split, index, **fields):
        path = root / f"coco_karpathy_{split}.json"
        rows = json.loads(path.read_text())
        rows[index] |= fields
        write_json(path, rows)
        return root

    return make


def test_a_caption_is_an_item_in_training(root):
    data = COCOKarpathyCaption(split="train", data_root=str(root), group_questions=False)
    assert len(data) == 4 and data.file_counts == {"images": 2, "questions": 4} and not data.test_mode
    record = data.get_data_info(3)
    assert record["img_path"] == str(root / "train2014/COCO_train2014_000000000025.jpg") and record["image_id"] == 25
    assert record["questions"] == ["a picture of"] and record["question_ids"] == [3]
    assert record["gt_answers"] == [["two  dogs; image 25"]]


@pytest.mark.parametrize(("split", "ids"), [("val", [42, 100]), ("test", [7, 184613])])
def test_an_image_is_an_item_in_testing(root, split, ids):
    data = COCOKarpathyCaption(split=split, data_root=str(root), prompt="a photo")
    records = [data.get_data_info(i) for i in range(len(data))]
    assert [record["image_id"] for record in records] == ids == [record["question_ids"][0] for record in records]
    assert all(record["questions"] == ["a photo"] and len(record["gt_answers"][0]) == 5 for record in records)
    assert data.test_mode and data.file_counts == {"images": 2, "questions": 2}


def test_the_published_counts(root):
    counts = {split: COCOKarpathyCaption(split=split, lazy_init=True).published_counts() for split in ("train", "val", "test")}
    assert counts["train"] == {"images": 113_287, "questions": 566_747}
    assert counts["val"] == counts["test"] == {"images": 5_000, "questions": 5_000}


@pytest.mark.parametrize(
    ("split", "fields", "message"),
    [
        ("train", {"caption": " "}, r"train.json, row 1: a caption is empty"),
        ("train", {"caption": ["one"]}, r"row 1 has caption=\['one'\] .* of type str"),
        ("train", {"image_id": "coco_10"}, r"image_id='coco_10' and the image .*0009.jpg': expected 'coco_9'"),
        ("train", {"image": "train2014/cat.jpg", "image_id": "coco_9"}, r"image='train2014/cat.jpg': expected a name such as"),
        ("val", {"caption": "one"}, r"val.json, row 1 has caption='one' .* of type list"),
        ("val", {"caption": []}, r"row 1 has caption=\[\]: expected a list of texts"),
        ("val", {"image": None}, r"row 1 has image=None"),
    ],
)
def test_broken_rows(change, split, fields, message):
    root = change(split, 1, **fields)
    with pytest.raises(ValueError, match=message):
        COCOKarpathyCaption(split=split, data_root=str(root))


def test_broken_files(root):
    with pytest.raises(ValueError, match="prompt is empty"):
        COCOKarpathyCaption(split="val", data_root=str(root), prompt=" ")
    with pytest.raises(ValueError, match="split='dev': expected one of 'train', 'val', 'test'"):
        COCOKarpathyCaption(split="dev", data_root=str(root))
    write_json(root / "coco_karpathy_val.json", {"images": []})
    with pytest.raises(ValueError, match=r"val.json holds .*: expected a list of objects with 'image' and 'caption'"):
        COCOKarpathyCaption(split="val", data_root=str(root))
    (root / "coco_karpathy_val.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*coco_karpathy_val.json; expected coco_karpathy_train.json"):
        COCOKarpathyCaption(split="val", data_root=str(root))
    (root / "val2014/COCO_val2014_000000000007.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 images are missing"):
        COCOKarpathyCaption(split="test", data_root=str(root))


def test_what_a_model_is_taught(root):
    """The prompt is the text, and the cleaned caption what should follow it."""
    pipeline = [
        {"type": "LoadImage"},
        {"type": "TokenizeQuestions", "tokenizer": TOKENIZER, "max_length": 8},
        {"type": "CleanCaptions"},
        {"type": "TokenizeAnswers", "tokenizer": TOKENIZER, "max_length": 6},
        {"type": "PackVLInputs"},
    ]
    data = COCOKarpathyCaption(
        split="train", data_root=str(root), group_questions=False, pipeline=[TRANSFORMS.build(step) for step in pipeline]
    )
    items = [data[i] for i in range(2)]
    batch = {"inputs": [item["inputs"] for item in items], "data_samples": [item["data_samples"] for item in items]}
    inputs = VisionLanguagePreprocessor()(batch, True)["inputs"]
    number = {word: 4 + i for i, word in enumerate(WORDS)}
    assert inputs.input_ids.tolist() == [[0, number["a"], number["picture"], number["of"], 2]] * 2
    captions = [["a", "cat", "is", "no"], ["two", "dogs", "image", "9"]]  # the first loses its last word
    assert inputs.targets.input_ids.tolist() == [[0, *(number[word] for word in caption), 2] for caption in captions]
    assert inputs.targets.weights.tolist() == [1, 1] and torch.equal(inputs.targets.sample, torch.arange(2))
    assert VisionLanguagePreprocessor()(batch, False)["inputs"].targets is None
