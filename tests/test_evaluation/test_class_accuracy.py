import pytest
import torch

from smarttrim_mm.evaluation.class_accuracy import ClassAccuracy


def build():
    metric = ClassAccuracy()
    metric.dataset_meta = {"classes": ("contradiction", "neutral", "entailment")}
    return metric


def sample(predicted: list[int], targets: list[int]) -> dict:
    return {"image_id": 5, "pred_scores": torch.eye(3)[predicted], "targets": torch.tensor(targets)}


def test_overall_and_by_class():
    metric = build()
    metric.process(None, [sample([0, 1, 2], [0, 0, 2]), sample([2], [0])])
    assert len(metric.results) == 2  # one an item, as mmengine's gathering expects
    assert metric.evaluate(2) == {
        "class/accuracy": 0.5,
        "class/accuracy_contradiction": pytest.approx(1 / 3),
        "class/accuracy_entailment": 1.0,
    }


def test_bad_input():
    with pytest.raises(ValueError, match="target -1 of image 5: expected 0 to 2"):
        build().process(None, [sample([0], [-1])])
    with pytest.raises(ValueError, match="targets of image 5 has 2 values"):
        build().process(None, [sample([0], [1, 2])])
    with pytest.raises(ValueError, match="ClassAccuracy reads targets, but"):
        build().process(None, [{"pred_scores": torch.eye(3)}])
    with pytest.raises(ValueError, match="ClassAccuracy reads dataset_meta"):
        ClassAccuracy().process(None, [sample([0], [0])])
