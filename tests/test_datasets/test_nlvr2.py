import pytest
from official_files import edit_line, write_nlvr2

from smarttrim_mm.datasets.nlvr2 import NLVR2
from smarttrim_mm.registry import DATASETS


@pytest.fixture
def root(tmp_path):
    return write_nlvr2(tmp_path)


def test_items(root):
    dataset = NLVR2(split="train", data_root=str(root))
    assert len(dataset) == 3 and dataset.metainfo["classes"] == ("False", "True") and not dataset.test_mode
    item = dataset[0]
    assert item["img_paths"] == [f"{root}/images/train/40/train-10-0-img{side}.png" for side in (0, 1)]
    assert item["questions"] == ["There are dogs in train-10-0-0."] and item["identifiers"] == ["train-10-0-0"]
    assert [dataset[i]["targets"] for i in range(3)] == [[1], [0], [0]]
    assert [dataset[i]["image_id"] for i in range(3)] == [0, 0, 1] and [dataset[i]["question_ids"] for i in range(3)] == [
        [0],
        [1],
        [2],
    ]
    assert dataset[2]["img_paths"][1] == f"{root}/images/train/41/train-7-2-img1.png"


def test_a_directory_may_be_text(root):
    edit_line(root / "train.json", 0, directory="40")
    assert NLVR2(split="train", data_root=str(root))[0]["img_paths"][0] == f"{root}/images/train/40/train-10-0-img0.png"


@pytest.mark.parametrize("split", ["dev", "test1"])
def test_other_splits_have_no_directory(root, split):
    dataset = NLVR2(split=split, data_root=str(root))
    assert dataset[0]["img_paths"][0] == f"{root}/images/{split}/{split}-10-0-img0.png" and dataset.test_mode


def test_counts(root):
    counts = {split: NLVR2(split=split, data_root=str(root)).published_counts() for split in ("train", "dev", "test1")}
    assert counts == {"train": {"questions": 86_373}, "dev": {"questions": 6_982}, "test1": {"questions": 6_967}}
    assert NLVR2(split="dev", data_root=str(root)).file_counts == {"images": 2, "questions": 3}
    assert len(NLVR2(split="dev", data_root=str(root), num_images=1)) == 2


def test_ours_beside_mmpretrains():
    import mmpretrain.datasets

    assert DATASETS.get("NLVR2") is NLVR2
    assert DATASETS.get("mmpretrain.NLVR2") is mmpretrain.datasets.NLVR2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentence": ""}, r"dev.json, line 2: the sentence is empty \(''\): write its text or remove its row"),
        ({"sentence": None}, r"dev.json, line 2 has sentence=None in .*expected 'sentence' of type str"),
        ({"label": "true"}, r"dev.json, line 2 has label='true': expected 'True' or 'False'"),
        ({"identifier": "test1-1-0-0"}, r"line 2 has identifier='test1-1-0-0': expected 'dev-SET-PAIR-SENTENCE'"),
        ({"identifier": "dev-1-0"}, r"line 2 has identifier='dev-1-0': expected"),
    ],
)
def test_bad_rows(root, changes, message):
    edit_line(root / "dev.json", 1, **changes)
    with pytest.raises(ValueError, match=message):
        NLVR2(split="dev", data_root=str(root))


def test_training_rows_need_their_folder(root):
    edit_line(root / "train.json", 0, directory=None)
    with pytest.raises(ValueError, match=r"train.json, line 1 has directory=None"):
        NLVR2(split="train", data_root=str(root))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}\n]', r"dev.json, line 1 is no JSON .*expected an object; fetch the file again"),
        (
            '{"Flickr30K_ID": "1", "sentence2": "A"}\n',
            r"line 1 has identifier=None in .*is this the official file of this data set",
        ),
        ("[]", r"dev.json, line 1 has identifier=None in '\[\]'"),
        ("\n", "dev.json is empty: expected an object a line"),
    ],
)
def test_another_file(root, text, message):
    (root / "dev.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        NLVR2(split="dev", data_root=str(root))


def test_missing_files(root):
    (root / "images/dev/dev-7-2-img1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"NLVR2: 1 of 4 images are missing, the first is .*dev-7-2-img1.png"):
        NLVR2(split="dev", data_root=str(root))
    with pytest.raises(FileNotFoundError, match=r"NLVR2: no file .*nowhere/dev.json; expected train.json"):
        NLVR2(split="dev", data_root=str(root / "nowhere"))
    with pytest.raises(ValueError, match="split='test2'"):
        NLVR2(split="test2", data_root=str(root))
