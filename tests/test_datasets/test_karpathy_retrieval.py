import random
from pathlib import Path

import pytest
from official_files import edit_json, write_json, write_karpathy

from smarttrim_mm.datasets.karpathy_retrieval import KarpathyRetrieval


@pytest.fixture
def flickr(tmp_path) -> Path:
    return write_karpathy(tmp_path, "flickr30k", images=10)


def build(root, split="train", source="flickr30k", **arguments) -> KarpathyRetrieval:
    return KarpathyRetrieval(source=source, split=split, data_root=str(root), **arguments)


def test_testing_gives_all_captions(flickr):
    dataset = build(flickr, "test")
    assert len(dataset) == 1
    item = dataset[0]
    assert item["img_path"] == f"{flickr}/flickr30k-images/1009.jpg" and item["image_id"] == 9
    assert item["questions"] == [f"Caption {number} of image 9." for number in range(5)]
    assert item["question_ids"] == [45, 46, 47, 48, 49] and "targets" not in item


@pytest.mark.parametrize("group_questions", [True, False])
def test_training_puts_a_true_caption_first(flickr, group_questions):
    dataset = build(flickr, false_captions=3, group_questions=group_questions)
    assert len(dataset) == (8 if group_questions else 40)
    firsts = set()
    for draw in range(20):
        item = dataset[draw % 2]
        owners = [question_id // 5 for question_id in item["question_ids"]]
        assert item["targets"] == [0] and owners[0] == item["image_id"] and len(set(owners)) == len(owners) == 4
        assert item["questions"] == [f"Caption {i % 5} of image {i // 5}." for i in item["question_ids"]]
        assert {4, 9}.isdisjoint(owners)  # of val and test
        firsts.add(item["questions"][0])
    assert len(firsts) > 2 if group_questions else len(firsts) == 2


def test_training_without_false_captions(flickr):
    """An item is one caption with its image, whose id tells equal ones."""
    dataset = build(flickr, false_captions=0, group_questions=False)
    items = [dataset[i] for i in range(40)]
    assert [item["question_ids"] for item in items] == [[i] for i in range(50) if i // 5 not in (4, 9)]
    assert all(item["image_id"] == item["question_ids"][0] // 5 and item["targets"] == [0] for item in items)
    grouped = build(flickr, false_captions=0)
    drawn = {grouped[0]["question_ids"][0] for _ in range(20)}
    assert len(drawn) > 1 and drawn <= {0, 1, 2, 3, 4}


def test_draws_follow_pythons_generator(flickr):
    dataset = build(flickr, false_captions=3)
    draws = []
    for seed in (0, 0, 1):
        random.seed(seed)
        draws.append([dataset[i]["question_ids"] for i in range(4)])
    assert draws[0] == draws[1] != draws[2]


def test_coco_takes_in_restval(tmp_path):
    root = write_karpathy(tmp_path, "coco", images=10)
    dataset = build(root, source="coco", false_captions=1)
    paths = [dataset[i]["img_path"] for i in range(len(dataset))]
    assert len(paths) == 8 and paths[3] == f"{root}/val2014/COCO_val2014_000000001003.jpg"
    assert len(build(root, source="coco", false_captions=1, joined=())) == 6
    assert len(build(root, "val", source="coco")) == 1


def test_counts(flickr, tmp_path):
    assert build(flickr, false_captions=1).published_counts() == {"images": 29_000}
    assert build(flickr, "test").file_counts == {"images": 1, "questions": 5}
    joined = build(flickr, false_captions=1, joined=("val",))
    assert len(joined) == 9 and joined.published_counts() == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgid": None}, r"dataset_flickr30k.json, image 4 has imgid=None in .*expected 'imgid' of type int"),
        ({"sentences": []}, r"image 4 has no sentences: expected about five captions"),
        ({"sentences": [{"raw": " ", "sentid": 1}]}, r"image 4: a caption is empty \(' '\)"),
        ({"sentences": [{"tokens": ["a"]}]}, r"image 4 has raw=None in .*'tokens'"),
        ({"split": 3}, r"image 4 has split=3"),
    ],
)
def test_bad_rows(flickr, changes, message):
    edit_json(flickr / "dataset_flickr30k.json", "images", 4, **changes)
    with pytest.raises(ValueError, match=message):
        build(flickr, "val")


def test_another_data_sets_file(flickr):
    (flickr / "dataset_coco.json").write_bytes((flickr / "dataset_flickr30k.json").read_bytes())
    with pytest.raises(ValueError, match=r"dataset_coco.json, image 0 has filepath=None"):
        build(flickr, source="coco")
    write_json(flickr / "dataset_flickr30k.json", {"annotations": []})
    with pytest.raises(ValueError, match=r"holds an object with 'annotations': expected an object with a list 'images'"):
        build(flickr)


def test_missing_image(flickr):
    (flickr / "flickr30k-images/1009.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"Karpathy retrieval: 1 of 1 images are missing, .*1009.jpg"):
        build(flickr, "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "flickr"}, "source='flickr': expected one of 'flickr30k', 'coco'"),
        ({"split": "dev"}, "split='dev'"),
        ({"false_captions": -1}, "false_captions=-1: expected at least 0"),
        ({"false_captions": 8}, "false_captions=8: the split 'train' has 8 images, and each false caption is of another one"),
    ],
)
def test_bad_arguments(flickr, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(flickr, **arguments)


def test_a_file_without_the_split(flickr):
    write_karpathy(flickr, "flickr30k", images=4)
    with pytest.raises(ValueError, match="the split 'test' has no rows"):
        build(flickr, "test")
