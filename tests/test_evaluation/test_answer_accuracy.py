import pytest
import torch

from smarttrim_mm.evaluation.answer_accuracy import AnswerAccuracy


def sample(predicted: list[int], targets: list[int], answers: list[str]) -> dict:
    scores = torch.nn.functional.one_hot(torch.tensor(predicted), 4).float()
    return {"image_id": 5, "pred_scores": scores, "targets": torch.tensor(targets), "answers": answers}


def test_questions_count_alike_whatever_their_image():
    metric = AnswerAccuracy()
    metric.process(None, [sample([0, 1, 2], [0, 1, 1], ["yes", "no", "no"]), sample([3], [2], ["red"])])
    metric.process(None, [sample([3, 2], [3, 2], ["red", "blue"])])
    assert len(metric.results) == 3  # one an item, as mmengine's gathering expects
    assert metric.evaluate(3) == {
        "answer/accuracy": pytest.approx(4 / 6),
        "answer/accuracy_yes_no": pytest.approx(2 / 3),
        "answer/accuracy_other": pytest.approx(2 / 3),
    }


def test_a_kind_without_questions_is_left_out():
    metric = AnswerAccuracy(prefix="vqa")
    metric.process(None, [sample([0], [0], ["yes"])])
    assert metric.evaluate(1) == {"vqa/accuracy": 1.0, "vqa/accuracy_yes_no": 1.0}


def test_as_many_predictions_as_targets():
    with pytest.raises(ValueError, match=r"pred_scores \(2, 4\) of image 5: expected a row for each of its 3 targets"):
        AnswerAccuracy().process(None, [sample([0, 1], [0, 1, 2], ["yes", "no", "no"])])
