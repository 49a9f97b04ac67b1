import json

import pytest
import torch

from smarttrim_mm.evaluation.vqa_submission import VQASubmission


def build(path):
    metric = VQASubmission(out_file=str(path))
    metric.dataset_meta = {"classes": ("yes", "no", "café")}
    return metric


def sample(question_ids: list[int], answers: list[int]) -> dict:
    return {"image_id": 5, "pred_scores": torch.eye(3)[answers], "question_ids": torch.tensor(question_ids)}


def test_each_question_once_in_order(tmp_path):
    path = tmp_path / "new" / "answers.json"
    metric = build(path)
    metric.process(None, [sample([30, 4], [0, 2]), sample([7], [1]), sample([30, 4], [0, 2])])
    assert len(metric.results) == 3  # one an item, as mmengine's gathering expects
    assert metric.evaluate(3) == {}
    assert json.loads(path.read_text()) == [
        {"question_id": 4, "answer": "café"},
        {"question_id": 7, "answer": "no"},
        {"question_id": 30, "answer": "yes"},
    ]
    assert [file.name for file in path.parent.iterdir()] == ["answers.json"]


def test_two_answers_to_a_question_are_refused(tmp_path):
    metric = build(tmp_path / "answers.json")
    metric.process(None, [sample([30], [0]), sample([30], [1])])
    with pytest.raises(ValueError, match="question 30 has two results, 'yes' and 'no'"):
        metric.evaluate(2)
    assert not list(tmp_path.iterdir())


def test_no_questions(tmp_path):
    with pytest.raises(ValueError, match=r"no questions to write to .*answers.json"):
        build(tmp_path / "answers.json").evaluate(0)


def test_bad_input(tmp_path):
    metric = build(tmp_path / "answers.json")
    with pytest.raises(ValueError, match="VQASubmission reads question_ids, but the data sample of image 5 has only"):
        metric.process(None, [{"image_id": 5, "pred_scores": torch.eye(3)}])
    with pytest.raises(ValueError, match=r"question_ids of image 5 has 1 values, pred_scores is \(2, 3\)"):
        metric.process(None, [sample([30], [0, 1])])
