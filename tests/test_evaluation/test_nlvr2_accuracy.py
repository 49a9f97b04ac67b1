import pytest
import torch

from smarttrim_mm.evaluation.nlvr2_accuracy import NLVR2Accuracy


def sample(identifiers: list[str], predicted: list[int], targets: list[int]) -> dict:
    return {
        "image_id": 5,
        "pred_scores": torch.eye(2)[predicted],
        "targets": torch.tensor(targets),
        "identifiers": identifiers,
    }


def test_a_sentence_counts_only_if_all_its_pairs_are_right():
    metric = NLVR2Accuracy()
    metric.process(None, [sample(["dev-850-0-0"], [1], [1]), sample(["dev-850-1-0", "dev-850-0-1"], [0, 0], [1, 0])])
    metric.process(None, [sample(["dev-9-0-0"], [1], [1]), sample(["test1-850-2-0"], [0], [0])])
    assert len(metric.results) == 4  # one an item, as mmengine's gathering expects
    # sentences: dev-850-*-0 wrong; dev-850-*-1, dev-9-*-0 and test1-850-*-0 right
    assert metric.evaluate(4) == {"nlvr2/accuracy": pytest.approx(4 / 5), "nlvr2/consistency": pytest.approx(3 / 4)}


def test_an_example_seen_twice_counts_once():
    metric = NLVR2Accuracy()
    metric.process(None, [sample(["dev-1-0-0", "dev-2-0-0"], [1, 0], [1, 1]), sample(["dev-1-0-0"], [1], [1])])
    assert metric.evaluate(2) == {"nlvr2/accuracy": 0.5, "nlvr2/consistency": 0.5}
    metric.process(None, [sample(["dev-1-0-0"], [1], [1]), sample(["dev-1-0-0"], [0], [1])])
    with pytest.raises(ValueError, match="example 'dev-1-0-0' has two results, True and False"):
        metric.evaluate(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identifiers": ["dev-850-0"]}, "identifier 'dev-850-0': expected split, set, pair and sentence"),
        ({"identifiers": []}, r"identifiers of image 5 has 0 values, pred_scores is \(1, 2\)"),
        ({"targets": torch.tensor([1, 0])}, "targets of image 5 has 2 values"),
        ({"pred_scores": torch.ones(1, 3)}, r"pred_scores \(1, 3\) of image 5: expected 2 columns"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        NLVR2Accuracy().process(None, [sample(["dev-850-0-0"], [1], [1]) | changes])


def test_missing_fields_are_named():
    with pytest.raises(ValueError, match="NLVR2Accuracy reads targets, identifiers, but the data sample of image 5 has only"):
        NLVR2Accuracy().process(None, [{"image_id": 5, "pred_scores": torch.ones(1, 2)}])
