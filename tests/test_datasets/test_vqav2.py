import json

import numpy as np
import pytest
from official_files import VQA_CLASSES, VQA_TRAIN, edit_json, write_json, write_vqav2

from smarttrim_mm.datasets.vqav2 import VQAv2
from smarttrim_mm.registry import DATASETS

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"


@pytest.fixture
def root(tmp_path):
    return write_vqav2(tmp_path)


def build(root, split="train", **arguments) -> VQAv2:
    return VQAv2(split=split, data_root=str(root), num_classes=len(VQA_CLASSES), **arguments)


def test_items_of_an_image(root):
    dataset = build(root, "train")
    assert dataset.metainfo["classes"] == tuple(VQA_CLASSES)
    item = dataset[0]
    assert item["img_path"] == f"{root}/train2014/COCO_train2014_000000000009.jpg" and item["image_id"] == 9
    assert item["questions"] == ["What color is the cat?", "Is it red?"] and item["question_ids"] == [9000, 9001]
    assert item["gt_answers"] == [answers for _, answers in VQA_TRAIN[9]]
    assert item["answer_types"] == ["other", "yes/no"] and "answer_scores" not in item
    # 3 x red with "the red", 2 x Blue; teal is no class
    expected = [[1.0, 0.6, 0, 0, 0, 0], [0, 0, 1.0, 0, 0, 0]]
    assert item["soft_targets"].dtype == np.float32
    np.testing.assert_allclose(item["soft_targets"], expected, rtol=1e-6)


@pytest.mark.parametrize(("count", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_scores(root, count, score):
    answers = [{"answer": answer} for answer in ["green"] * count + ["yes"] * (10 - count)]
    edit_json(root / ANNOTATIONS, "annotations", -1, answers=answers)
    assert build(root)[0]["soft_targets"][0][VQA_CLASSES.index("green")] == pytest.approx(score)


def test_only_training_leaves_out_what_no_class_answers(root):
    train, val = build(root, "train"), build(root, "val")
    assert [train[i]["image_id"] for i in range(len(train))] == [9, 25]  # image 30's only answer is no class
    assert val[0]["question_ids"] == [42000, 42001] and not val[0]["soft_targets"][1].any()
    assert build(root, "train", test_mode=True)[2]["questions"] == ["What does it say?"]


def test_joined_splits(root):
    dataset = build(root, ["train", "val"])
    items = [dataset[i] for i in range(len(dataset))]
    assert [item["question_ids"] for item in items] == [[9000, 9001], [25000], [42000]]
    assert items[2]["img_path"].endswith("val2014/COCO_val2014_000000000042.jpg") and not dataset.test_mode
    assert dataset.file_counts == {"images": 4, "questions": 6}
    assert dataset.published_counts() == {"images": 82_783 + 40_504, "questions": 443_757 + 214_354}


def test_test_splits_have_no_answers(root):
    dataset = build(root, "test")
    assert [dataset[i]["questions"] for i in range(2)] == [["Is it a dog?", "What color?"], ["How many?"]]
    assert dataset[1]["img_path"].endswith("test2015/COCO_test2015_000000000016.jpg")
    assert not {"gt_answers", "soft_targets", "answer_types"} & dataset[0].keys()
    assert len(build(root, "test-dev")) == 1 and not build(root, "test-dev").published_counts()


def test_pairs_of_their_own_and_few_images(root):
    dataset = build(root, group_questions=False)
    assert [dataset[i]["question_ids"] for i in range(len(dataset))] == [[9000], [9001], [25000]]
    assert dataset[1]["soft_targets"].shape == (1, 6) and dataset[1]["answer_types"] == ["yes/no"]
    assert len(build(root, num_images=1)) == 1
    drawn = build(root, questions_per_image=1)[0]
    assert len(drawn["questions"]) == len(drawn["soft_targets"]) == len(drawn["gt_answers"]) == 1


def test_image_size_reaches_the_pipeline(root):
    assert build(root, image_size=576)[0]["image_size"] == 576
    with pytest.raises(ValueError, match="image_size=0: expected at least 1"):
        build(root, image_size=0)


def test_registered():
    assert DATASETS.get("VQAv2") is VQAv2


@pytest.mark.parametrize(
    ("name", "key", "changes", "message"),
    [
        (QUESTIONS, "questions", {"question": None}, r"question 9000 of image 9 has question=None in .*expected 'question' of"),
        (QUESTIONS, "questions", {"question": " "}, rf"{QUESTIONS}: question 9000 of image 9 is empty \(' '\): write its text"),
        (QUESTIONS, "questions", {"image_id": "9"}, rf"{QUESTIONS}, row 0 has image_id='9' in .*of type int.*Fetch it again"),
        (
            QUESTIONS,
            "questions",
            {"question_id": 5},
            "question 5 of image 9 has no answers in .*annotations.json: expected the two",
        ),
        (
            QUESTIONS,
            "questions",
            {"image_id": 25},
            "question 9000 is about image 9, but about image 25 in the file of questions",
        ),
        (ANNOTATIONS, "annotations", {"answers": [{"answer": "a"}]}, "question 30000 has 1 answers, expected 10"),
        (ANNOTATIONS, "annotations", {"answers": None}, "question 30000 has answers=None in .*of type list"),
        (ANNOTATIONS, "annotations", {"question_id": None}, rf"{ANNOTATIONS}, row 0 has question_id=None"),
    ],
)
def test_bad_rows(root, name, key, changes, message):
    edit_json(root / name, key, 0, **changes)
    with pytest.raises(ValueError, match=message):
        build(root)


def test_another_file(root):
    (root / QUESTIONS).write_bytes((root / ANNOTATIONS).read_bytes())
    with pytest.raises(ValueError, match=rf"{QUESTIONS} holds an object with 'info', .*'annotations': expected .*'questions'"):
        build(root)
    write_json(root / QUESTIONS, [])
    with pytest.raises(ValueError, match=r"questions.json holds '\[\]': expected an object with a list 'questions'"):
        build(root)
    (root / QUESTIONS).write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"questions.json is no text .*Correct data_root"):
        build(root)


def test_missing_image_and_file(root):
    (root / "train2014/COCO_train2014_000000000025.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"VQAv2: 1 of 2 images are missing, .*0025.jpg\. Correct data_root; docs/data"):
        build(root)
    (root / ANNOTATIONS).unlink()
    with pytest.raises(FileNotFoundError, match=rf"VQAv2: no file {root}/{ANNOTATIONS}; expected v2_Open"):
        build(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (VQA_CLASSES[:-1], "answers.json holds 5 answers, but num_classes=6"),
        ([*VQA_CLASSES[:-1], "red"], "answers.json holds 'red' more than once"),
        ({"red": 0}, r"answers.json holds \"{'red': 0}\": expected a list of different answers; make it with"),
    ],
)
def test_bad_vocabulary(root, content, message):
    (root / "answers.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        build(root)


def test_unknown_split(root):
    with pytest.raises(ValueError, match="split='dev': expected one of 'train', 'val', 'test-dev', 'test'"):
        build(root, ["train", "dev"])


def test_problems_are_collected_on_request(root):
    edit_json(root / QUESTIONS, "questions", 0, question="")
    (root / "train2014/COCO_train2014_000000000025.jpg").unlink()
    dataset = build(root, lazy_init=True)
    dataset.problems = []
    dataset.full_init()
    assert len(dataset) == 2 and len(dataset.problems) == 2
    assert "question 9000 of image 9 is empty" in dataset.problems[0] and "0025.jpg: no such image" in dataset.problems[1]
