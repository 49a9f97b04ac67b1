import pytest
from official_files import edit_line, write_snli_ve

from smarttrim_mm.datasets.snli_ve import SNLIVE


@pytest.fixture
def root(tmp_path):
    return write_snli_ve(tmp_path)


def test_items_of_an_image(root):
    dataset = SNLIVE(split="train", data_root=str(root))
    assert dataset.metainfo["classes"] == ("contradiction", "neutral", "entailment") and len(dataset) == 2
    item = dataset[0]
    assert item["img_path"] == f"{root}/flickr30k-images/100.jpg" and item["image_id"] == 100
    assert item["questions"] == ["A man sleeps.", "A man is outside."]
    assert item["question_ids"] == [0, 2] and item["targets"] == [0, 1]
    assert dataset[1]["questions"] == ["A dog runs."] and dataset[1]["targets"] == [2]


def test_pairs_of_their_own(root):
    dataset = SNLIVE(split="dev", data_root=str(root), group_questions=False)
    assert [dataset[i]["question_ids"] for i in range(len(dataset))] == [[0], [2], [1]]
    assert dataset.published_counts() == {"questions": 17_858} and dataset.file_counts == {"images": 2, "questions": 3}


def test_sentences_may_hold_other_separators(root):
    edit_line(root / "snli_ve_dev.jsonl", 0, sentence2="A man\u2028sleeps.")
    text = (root / "snli_ve_dev.jsonl").read_text().replace("\\u2028", "\u2028")
    (root / "snli_ve_dev.jsonl").write_text(text, encoding="utf-8")
    assert SNLIVE(split="dev", data_root=str(root))[0]["questions"][0] == "A man\u2028sleeps."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentence2": ""}, r"snli_ve_test.jsonl, line 2: sentence2 is empty \(''\)"),
        ({"sentence2": None}, r"line 2 has sentence2=None in .*expected 'sentence2' of type str"),
        ({"gold_label": None}, r"line 2 has gold_label=None"),
        ({"gold_label": "-"}, r"line 2 has gold_label='-': expected one of \('contradiction', 'neutral', 'entailment'\)"),
        ({"Flickr30K_ID": None}, r"line 2 has Flickr30K_ID=None in .*expected 'Flickr30K_ID' of type str or int"),
        ({"Flickr30K_ID": "200.jpg"}, r"line 2 has Flickr30K_ID='200.jpg': expected a number such as '4705552913'"),
    ],
)
def test_bad_rows(root, changes, message):
    edit_line(root / "snli_ve_test.jsonl", 1, **changes)
    with pytest.raises(ValueError, match=message):
        SNLIVE(split="test", data_root=str(root))


def test_an_id_without_an_image(root):
    edit_line(root / "snli_ve_test.jsonl", 1, Flickr30K_ID="300")
    with pytest.raises(FileNotFoundError, match=r"SNLI-VE: 1 of 2 images are missing, .*flickr30k-images/300.jpg\. Correct"):
        SNLIVE(split="test", data_root=str(root))


def test_another_data_sets_file(root):
    (root / "snli_ve_test.jsonl").write_text('{"sentence": "It is.", "label": "True", "identifier": "dev-850-0-0"}\n')
    with pytest.raises(ValueError, match=r"line 1 has Flickr30K_ID=None in .*dev-850-0-0.*is this the official file"):
        SNLIVE(split="test", data_root=str(root))
