"""mmpretrain's metrics on our predictions, beside ours and the official rules, on cases worked by hand."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import Evaluator

from smarttrim_mm.evaluation.mmpretrain_metric import MMPretrainMetric
from smarttrim_mm.registry import METRICS

CLASSES = ("no", "yes", "the cat", "2", "t-shirt", "two")


def judge(metrics, samples, classes=CLASSES):
    evaluator = Evaluator([METRICS.build(metric) for metric in metrics])
    evaluator.dataset_meta = {"classes": classes} if classes else {}
    evaluator.process(data_samples=samples, data_batch=None)
    return evaluator.evaluate(len(samples))


def theirs(name, **settings):
    return {"type": "MMPretrainMetric", "metric": {"type": f"mmpretrain.{name}", **settings}}


def predicted(answer, answers, number=0, classes=CLASSES):
    """A sample as `FromMMPretrain` and a model that answers with a class leave it."""
    distinct = list(dict.fromkeys(answers))
    return {
        "image_id": number,
        "question_ids": torch.tensor([number]),
        "pred_scores": torch.eye(len(classes))[[classes.index(answer)]],
        "gt_answer": distinct,
        "gt_answer_weight": [answers.count(one) / len(answers) for one in distinct],
        "gt_answers": [answers],
    }


@pytest.mark.parametrize(
    ("answer", "answers", "official", "of_mmpretrain"),
    [
        # leave one out: one match of ten counts in nine subsets of ten, as 1/3 each; mmpretrain divides its share by 0.3
        ("yes", ["yes"] * 1 + ["no"] * 9, 0.3, 1 / 3),
        ("yes", ["yes"] * 2 + ["no"] * 8, 0.6, 2 / 3),
        ("yes", ["yes"] * 3 + ["no"] * 7, 0.9, 1.0),
        ("yes", ["yes"] * 4 + ["no"] * 6, 1.0, 1.0),
        ("yes", ["no"] * 10, 0.0, 0.0),
        # people who all agree are matched to the letter; mmpretrain normalises
        ("the cat", ["cat"] * 10, 0.0, 1.0),
        ("2", ["two"] * 10, 0.0, 1.0),
        # people who differ are normalised by both
        ("2", ["two"] * 8 + ["2"] + ["three"], 1.0, 1.0),
    ],
)
def test_vqa_accuracy_is_not_the_official_one(answer, answers, official, of_mmpretrain):
    metrics = judge([{"type": "VQAAccuracy"}, theirs("VQAAcc")], [predicted(answer, answers)])
    assert metrics["vqa/accuracy"] == pytest.approx(official)
    assert metrics["VQA/acc"] == pytest.approx(100 * of_mmpretrain, rel=1e-6)


def test_normalisation_is_the_same():
    """mmpretrain copied the official code, with its oddities."""
    from mmpretrain.evaluation import VQAAcc

    from smarttrim_mm.evaluation.vqa_normalisation import normalise_answer

    texts = [
        "A cat, a dog.",
        "t-shirt",
        "3.5 feet",
        "1,000",
        "dont",
        "somebody'd",
        "None",
        "it's\ta\n'twas",
        "Ten  (10)",
        "ow's'at",
    ]
    texts += ["it is 1,000 - or so", "yes!", "couldnt've", "the", "u.s.", "9:30", "she's", "lets", "let's"]
    for text in texts:
        assert VQAAcc()._process_answer(text) == normalise_answer(text), text


def test_gqa_accuracy_is_more_lenient():
    """The official one compares letter for letter."""
    cases = [("the cat", "cat"), ("t-shirt", "t shirt"), ("two", "2"), ("yes", "yes"), ("no", "yes")]
    samples = [{**predicted(answer, [right], i), "gt_answer": right} for i, (answer, right) in enumerate(cases)]
    metrics = judge([{"type": "AnswerAccuracy"}, theirs("GQAAcc")], samples)
    assert metrics["answer/accuracy"] == pytest.approx(1 / 5) and metrics["GQA/acc"] == pytest.approx(4 / 5)


def test_accuracy_of_nlvr2_is_that_of_ours():
    rows = [("dev-1-0-0", 1, 0.9), ("dev-1-1-0", 0, 0.8), ("dev-2-0-0", 0, 0.3)]  # label, probability of true
    samples = [
        {
            "image_id": i,
            "identifiers": [name],
            "targets": torch.tensor([label]),
            "gt_label": torch.tensor([label]),
            "pred_scores": torch.tensor([[1 - true, true]]),
        }
        for i, (name, label, true) in enumerate(rows)
    ]
    metrics = judge([{"type": "NLVR2Accuracy"}, theirs("Accuracy")], samples, classes=("False", "True"))
    assert metrics["nlvr2/accuracy"] == pytest.approx(2 / 3) and metrics["accuracy/top1"] == pytest.approx(200 / 3)
    assert metrics["nlvr2/consistency"] == pytest.approx(1 / 2), "of which mmpretrain has none"


def test_captions_are_scored_by_the_same_scorers(tmp_path, monkeypatch):
    """mmpretrain's COCOCaption hands all captions to pycocoevalcap, an image once; without Java, as far as the hand-over."""
    seen = {}
    monkeypatch.setattr(
        "mmpretrain.evaluation.metrics.caption.coco_caption_eval",
        lambda results, references: seen.update(rows=json.loads(Path(results).read_text()), references=references)
        or {"CIDEr": 1.0},
    )
    samples = [{"image_id": number, "pred_caption": f"a cat {number}"} for number in (522418, 7, 522418)]
    assert judge([theirs("COCOCaption", ann_file="gt.json")], samples, classes=None) == {"CIDEr": 1.0}
    assert seen["rows"] == [{"caption": "a cat 522418", "image_id": 522418}, {"caption": "a cat 7", "image_id": 7}]


def test_the_file_for_the_vqa_server(tmp_path):
    path = tmp_path / "vqa.json"
    samples = [{**predicted("yes", ["yes"]), "question_id": 9000}]
    judge([theirs("ReportVQA", file_path=str(path))], samples)
    assert json.loads(path.read_text()) == [{"question_id": 9000, "answer": "yes"}]


@pytest.mark.parametrize(
    ("sample", "classes", "message"),
    [
        ({"image_id": 3}, CLASSES, "image 3 has no prediction, but only .*: mmpretrain's VQAAcc expects one of pred_scores"),
        (predicted("no", ["no"]), None, r"reads dataset_meta\['classes'\]"),
        ({**predicted("no", ["no"]), "pred_scores": torch.eye(6)[:2]}, CLASSES, "image 0 has 2 questions: mmpretrain's VQAAcc"),
        ({**predicted("no", ["no"]), "pred_scores": torch.full((1, 6), torch.nan)}, CLASSES, "has NaN"),
    ],
)
def test_samples_that_do_not_fit(sample, classes, message):
    with pytest.raises(ValueError, match=message):
        judge([theirs("VQAAcc")], [sample], classes)


def test_a_written_answer_stays():
    sample = {"image_id": 0, "pred_answer": "yes", "gt_answer": "yes", "gt_answers": [["yes"]], "question_ids": [4]}
    metrics = judge([theirs("GQAAcc"), {"type": "AnswerAccuracy"}], [sample], classes=None)
    assert metrics == {"GQA/acc": 1.0, "answer/accuracy": 1.0}


def test_answer_accuracy_asks_for_one_answer():
    with pytest.raises(ValueError, match=r"question 5 has the answers \['no', 'yes'\]: expected one; VQAAccuracy"):
        judge([{"type": "AnswerAccuracy"}], [predicted("no", ["no", "yes"], 5)])


def test_names_of_the_classes_reach_the_metric():
    metric = MMPretrainMetric(metric={"type": "mmpretrain.Accuracy"})
    metric.dataset_meta = {"classes": ("a",)}
    assert metric.metric.dataset_meta == metric.dataset_meta == {"classes": ("a",)}
