import pytest
import torch

from smarttrim_mm.evaluation.vqa_accuracy import VQAAccuracy

CLASSES = ("yes", "no", "2", "red")


def build(classes=CLASSES):
    metric = VQAAccuracy()
    metric.dataset_meta = {"classes": classes}
    return metric


def sample(**changes) -> dict:
    return {
        "image_id": 5,
        "pred_scores": torch.eye(4)[[0, 2, 3]],
        "question_ids": torch.tensor([50, 51, 52]),
        "gt_answers": [["yes"] * 10, ["two", "2"] + ["3"] * 8, ["red"] + ["blue"] * 9],
        "answer_types": ["yes/no", "number", "other"],
    } | changes


def test_overall_and_by_type():
    metric = build()
    more = sample(question_ids=torch.tensor([60]), pred_scores=torch.eye(4)[[3]], gt_answers=[["blue"] * 10])
    metric.process(None, [sample(), more | {"answer_types": ["other"]}])
    assert len(metric.results) == 2  # one an item, as mmengine's gathering expects
    assert metric.evaluate(2) == {
        "vqa/accuracy": pytest.approx((1 + 0.6 + 0.3 + 0) / 4),
        "vqa/accuracy_yes_no": 1.0,
        "vqa/accuracy_number": pytest.approx(0.6),
        "vqa/accuracy_other": pytest.approx(0.15),
    }


def test_types_are_optional():
    metric = build()
    item = sample()
    del item["answer_types"]
    metric.process(None, [item])
    assert metric.evaluate(1) == {"vqa/accuracy": pytest.approx(1.9 / 3)}


def test_a_question_seen_twice_counts_once():
    metric = build()
    metric.process(None, [sample(), sample()])
    assert metric.evaluate(2)["vqa/accuracy"] == pytest.approx(1.9 / 3)
    metric.process(None, [sample(), sample(pred_scores=torch.eye(4)[[1, 2, 3]])])
    with pytest.raises(ValueError, match=r"question 50 has two results, \(1.0, 'yes/no'\) and \(0.0, 'yes/no'\)"):
        metric.evaluate(2)


@pytest.mark.parametrize("field", ["pred_scores", "question_ids", "gt_answers"])
def test_missing_fields_are_named(field):
    item = sample()
    del item[field]
    with pytest.raises(ValueError, match=rf"VQAAccuracy reads {field}, but the data sample of image 5 has only \["):
        build().process(None, [item])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question_ids": torch.tensor([1, 2])}, r"question_ids of image 5 has 2 values, pred_scores is \(3, 4\)"),
        ({"gt_answers": [["yes"]]}, "gt_answers of image 5 has 1 values"),
        ({"answer_types": ["other"] * 4}, "answer_types of image 5 has 4 values"),
        ({"gt_answers": [["yes"], [], ["red"]]}, r"answers=\[\]"),
        ({"pred_scores": torch.ones(3)}, r"pred_scores \(3,\) of image 5: expected \[questions, classes\]"),
        ({"pred_scores": torch.ones(3, 5)}, r"pred_scores \(3, 5\) of image 5: expected 4 columns"),
        ({"pred_scores": torch.full((3, 4), torch.nan)}, "pred_scores of image 5 has NaN"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        build().process(None, [sample(**changes)])


def test_a_data_set_names_its_classes():
    with pytest.raises(ValueError, match=r"VQAAccuracy reads dataset_meta\['classes'\], which is None"):
        VQAAccuracy().process(None, [sample()])
