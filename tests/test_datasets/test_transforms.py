import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from PIL import ImageFile

from smarttrim_mm.datasets.easy_vqa import EasyVQA
from smarttrim_mm.datasets.multi_image import PackVLInputs
from smarttrim_mm.datasets.transforms import LoadImage, TokenizeQuestions
from smarttrim_mm.registry import TRANSFORMS

TOKENIZER = {"type": "WordTokenizer", "words": ["is", "there", "a", "circle", "?"]}


def test_pipeline_packs_one_image_with_its_questions(make_root):
    steps = [LoadImage(), TokenizeQuestions(tokenizer=TOKENIZER, max_length=16), PackVLInputs()]
    item = EasyVQA(split="test", data_root=make_root(), pipeline=steps)[2]
    assert item["inputs"].dtype == torch.uint8 and item["inputs"].shape == (3, 4, 6)
    assert item["inputs"][:, 0, 0].tolist() == [0, 100, 202]  # BGR
    sample = item["data_samples"]
    assert (sample.image_id, sample.questions[0], sample.answers) == (2, "is there a circle?", ["no", "no"])
    assert sample.input_ids == [[0, 4, 5, 6, 7, 8, 2], [0, 4, 5, 6, 3, 8, 2]]
    assert sample.question_ids.tolist() == [1_000_004, 1_000_005] and sample.targets.tolist() == [3, 3]
    assert sample.img_path.endswith("test/images/2.png")
    assert pickle.loads(pickle.dumps(sample)).input_ids == sample.input_ids


def test_answers_may_be_unknown():
    record = {
        "img": torch.zeros(4, 6, 3, dtype=torch.uint8).numpy(),
        "questions": ["a?"],
        "question_ids": [7],
        "image_id": 1,
    }
    sample = Compose([TokenizeQuestions(tokenizer=TOKENIZER, max_length=4), PackVLInputs()])(record)["data_samples"]
    assert "targets" not in sample and "answers" not in sample and sample.input_ids == [[0, 6, 8, 2]]


@pytest.mark.parametrize("backend", ["pillow", "cv2"])
@pytest.mark.parametrize("content", ["half", "empty", "text"])
def test_unreadable_image_names_the_file(make_root, tmp_path, backend, content):
    make_root()
    whole = (tmp_path / "test/images/0.png").read_bytes()
    path = tmp_path / "broken.png"
    path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "text": b"<html>not found</html>"}[content])
    with pytest.raises(ValueError, match=f"(?s)img_path='{path}' cannot be read .*fetch it again"):
        LoadImage(imdecode_backend=backend)({"img_path": str(path)})


@pytest.mark.parametrize("backend", ["pillow", "cv2"])
def test_damaged_image_names_the_file(make_root, tmp_path, backend):
    make_root()
    path = tmp_path / "test/images/0.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"img_path='{path}' cannot be read"):
        LoadImage(imdecode_backend=backend)({"img_path": str(path)})


def test_missing_image_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"img_path='{tmp_path}/no.png': no such file; check .* data_root"):
        LoadImage()({"img_path": f"{tmp_path}/no.png"})


def test_distinct_answers_of_a_question_become_texts():
    words = ["red", "blue", "dark"]
    step = TRANSFORMS.build({"type": "TokenizeAnswers", "tokenizer": {"type": "WordTokenizer", "words": words}})
    found = step({"gt_answers": [["red"] * 7 + ["dark blue"] * 3, ["blue"] * 10]})
    assert found["answer_ids"] == [[[0, 4, 2], [0, 6, 5, 2]], [[0, 5, 2]]]
    assert found["answer_weights"] == [[0.7, 0.3], [1.0]]
    assert step({"gt_answers": [["", "red"] * 5]})["answer_ids"] == [[[0, 2], [0, 4, 2]]]
    assert step({"questions": []}) == {"questions": []}  # a test split has no answers


def test_truncated_images_are_errors_wherever_pillow_was_told_otherwise(tmp_path, monkeypatch):
    path = tmp_path / "half.jpg"
    assert cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)  # as LAVIS does
    with pytest.raises(ValueError, match=r"half\.jpg"):
        TRANSFORMS.build({"type": "LoadImage", "imdecode_backend": "pillow"})({"img_path": str(path)})
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Man (in red) rides a horse!!", "a man in red rides a horse"),
        ("two  dogs;\n one cat.  ", "two dogs one cat"),
        ('the dog\'s black-and-white, "fast" #1 ~ friend: who?', "the dog's black-and-white, fast 1 friend who?"),
        (" ".join(["w"] * 60), " ".join(["w"] * 50)),
        ("...", ""),
    ],
)
def test_captions_are_cleaned_as_in_blip(text, expected):
    step = TRANSFORMS.build({"type": "CleanCaptions"})
    assert step.transform({"gt_answers": [[text, "A b"], [text]]})["gt_answers"] == [[expected, "a b"], [expected]]
