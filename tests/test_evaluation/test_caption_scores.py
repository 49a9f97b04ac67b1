"""BLEU and CIDEr of captions."""

import json
import math
import shutil
import sys

import pytest

from smarttrim_mm.evaluation.caption_scores import CaptionScores, caption_scores
from smarttrim_mm.registry import METRICS

CAPTIONS = {7: "a dog runs", 3: "two cats sleep on the sofa"}
REFERENCES = {7: ["A dog runs.", "The dog, running!"], 3: ["Two cats sleep on a sofa.", "cats"]}
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Stanford's tokenizer is Java")


def sample(image, caption, references):
    return {"image_id": image, "pred_caption": caption, "gt_answers": [references]}


def samples():
    return [sample(image, CAPTIONS[image], REFERENCES[image]) for image in CAPTIONS]


@pytest.mark.parametrize("tokenizer", ["plain", pytest.param("ptb", marks=needs_java)])
def test_scores_by_hand(tokenizer):
    """Words that occur in a reference: 3 + 5 of 9; pairs: 2 + 3 of 7; triples 1 + 2 of 5; fours: 0 + 1 of 3."""
    found = caption_scores(CAPTIONS, REFERENCES, tokenizer)
    shares = [8 / 9, 5 / 7, 3 / 5, 1 / 3]
    for n in range(1, 5):
        assert found[f"Bleu_{n}"] == pytest.approx(math.prod(shares[:n]) ** (1 / n), abs=1e-6)
    assert 0 < found["CIDEr"] < 10
    own = caption_scores({i: each[0] for i, each in REFERENCES.items()}, REFERENCES, tokenizer)
    assert own["Bleu_1"] == pytest.approx(1, abs=1e-6) and own["CIDEr"] > found["CIDEr"]


@needs_java
def test_the_official_tokens():
    """PTB parts the dog from its 's; what lies between spaces does not."""
    found = {name: caption_scores({1: "the dog 's bone"}, {1: ["The dog's bone"]}, name)["Bleu_1"] for name in ("ptb", "plain")}
    assert found["ptb"] == pytest.approx(1, abs=1e-6) and found["plain"] < 0.9


def test_the_metric_and_its_file(tmp_path, caplog):
    path = tmp_path / "new" / "captions.json"
    metric = METRICS.build({"type": "CaptionScores", "tokenizer": "plain", "out_file": str(path)})
    for each in samples():
        metric.process(None, [each])
    found = metric.evaluate(2)
    expected = caption_scores(CAPTIONS, REFERENCES, "plain")
    assert found == pytest.approx({f"caption/{name.lower()}": score for name, score in expected.items()})
    assert json.loads(path.read_text()) == [{"image_id": image, "caption": CAPTIONS[image]} for image in (3, 7)]


def test_plain_scores_say_so(monkeypatch):
    said = []
    monkeypatch.setattr("smarttrim_mm.evaluation.caption_scores.print_log", lambda text, **_: said.append(text))
    caption_scores(CAPTIONS, REFERENCES, "plain")
    assert said == ["plain tokens: BLEU and CIDEr are not the official ones, which need tokenizer='ptb'"]


def test_images_count_once(tmp_path):
    """As where ranks evaluate the same image; two captions of one are an error."""
    metric = CaptionScores(tokenizer="plain")
    rows = [[(image, (CAPTIONS[image], tuple(REFERENCES[image])))] for image in (7, 3, 7)]
    assert metric.compute_metrics(rows) == pytest.approx(metric.compute_metrics(rows[:2]))
    with pytest.raises(ValueError, match="image 7 has two results"):
        metric.compute_metrics([*rows, [(7, ("a cat", tuple(REFERENCES[7])))]])


def test_what_is_missing(monkeypatch):
    with pytest.raises(ValueError, match="tokenizer='moses': expected one of 'ptb', 'plain'"):
        CaptionScores(tokenizer="moses")
    metric = CaptionScores(tokenizer="plain")
    with pytest.raises(ValueError, match="CaptionScores reads pred_caption, but the data sample of image 7 has only"):
        metric.process(None, [{"image_id": 7, "gt_answers": [["a"]], "pred_scores": None}])
    with pytest.raises(ValueError, match="gt_answers of image 7 holds 2 lists of captions: expected one"):
        metric.process(None, [{"image_id": 7, "gt_answers": [["a"], ["b"]], "pred_caption": "a"}])
    with pytest.raises(ValueError, match="captions of 1 images and references of 2, and 1 are only in one of them, such as"):
        caption_scores({7: "a"}, REFERENCES, "plain")
    with pytest.raises(ValueError, match="captions of 0 images"):
        caption_scores({}, {}, "plain")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"tokenizer='ptb' is Stanford's, which needs Java.*set tokenizer='plain'"):
        CaptionScores()
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(ImportError, match=r"  pip install pycocoevalcap==1.2"):
        CaptionScores(tokenizer="plain")


@needs_java
def test_a_tokenizer_that_fails(monkeypatch):
    from pycocoevalcap.tokenizer import ptbtokenizer

    monkeypatch.setattr(ptbtokenizer.PTBTokenizer, "tokenize", lambda self, texts: {})
    with pytest.raises(RuntimeError, match="the PTB tokenizer did not give back every caption"):
        caption_scores(CAPTIONS, REFERENCES, "ptb")
