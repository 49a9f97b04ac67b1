import pytest
import torch

from smarttrim_mm.evaluation.answer_dump import AnswerDump

TWO = {"pred_scores": torch.tensor([[0.2, 0.8], [0.9, 0.1]]), "question_ids": torch.tensor([3, 4]), "questions": ["a", "b"]}


def dump(classes=("False", "True"), **fields) -> list[dict]:
    metric = AnswerDump()
    metric.dataset_meta = {"classes": classes} if classes else {}
    metric.process(None, [{**TWO, "image_id": 7, **fields}])
    metric.evaluate(1)
    return metric.answers


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"answers": ["no", "yes"], "gt_answers": [["x"], ["y"]]}, ["no", "yes"]),
        ({"gt_answers": [["red", "blue", "blue"], ["2", "two", "2"]]}, ["blue", "2"]),
        ({"targets": torch.tensor([1, 0])}, ["True", "False"]),
        ({}, [None, None]),
    ],
)
def test_right_answers_of_every_kind_of_data(fields, expected):
    records = dump(**fields)
    assert [record.get("answer") for record in records] == expected
    assert [record["predicted_answer"] for record in records] == ["True", "False"]
    assert [record["score"] for record in records] == pytest.approx([0.8, 0.9])
    assert [(record["image_id"], record["question_id"], record["question"]) for record in records] == [(7, 3, "a"), (7, 4, "b")]


def test_targets_without_names_are_left_out():
    assert all(record.keys().isdisjoint({"answer", "predicted_answer"}) for record in dump(None, targets=torch.tensor([1, 0])))


def test_sentences_of_nlvr2_are_named():
    assert [record["identifier"] for record in dump(identifiers=["dev-1-0-0", "dev-1-0-1"])] == ["dev-1-0-0", "dev-1-0-1"]


def test_the_ten_best_texts_of_an_image():
    metric = AnswerDump()
    scores = torch.tensor([0.5, 3.0, -1.0])
    metric.process(None, [{"image_id": 7, "scores": scores, "caption_ids": [30, 31, 32]}])
    metric.evaluate(1)
    assert metric.answers == [{"image_id": 7, "text_ids": [31, 30, 32], "scores": [3.0, 0.5, -1.0]}]


def test_captions():
    metric = AnswerDump()
    fields = {"pred_caption": "a cat", "question_ids": torch.tensor([7]), "questions": ["a picture of"]}
    known = {"gt_answers": [["A cat.", "cats"]], "trim": {"multiply_adds": torch.ones(1)}}
    metric.process(None, [{**fields, "image_id": 7, **known}])
    metric.process(None, [{**fields, "image_id": 8}])
    metric.evaluate(2)
    first = {"image_id": 7, "predicted_answer": "a cat", "references": ["A cat.", "cats"], "multiply_adds": 1.0}
    assert metric.answers == [first, {"image_id": 8, "predicted_answer": "a cat"}]
