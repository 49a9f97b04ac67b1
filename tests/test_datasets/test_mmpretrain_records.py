"""Records of mmpretrain's data sets become ours."""

import pytest
import torch
from mmpretrain_files import TRAIN, WRITERS, rows_of
from official_files import write_json

from smarttrim_mm.datasets.mmpretrain_records import FromMMPretrain, mmpretrain_dataset, read_answers
from smarttrim_mm.registry import DATASETS

VQA = {
    "type": "mmpretrain.COCOVQA",
    "data_root": "data/coco",
    "data_prefix": "train2014",
    "question_file": "annotations/v2_OpenEnded_mscoco_train2014_questions.json",
    "ann_file": "annotations/v2_mscoco_train2014_annotations.json",
}
GQA = {
    "type": "mmpretrain.GQA",
    "data_root": "data/gqa",
    "data_prefix": "images",
    "ann_file": "annotations/train_balanced_questions.json",
}
BARE = {"img_path": "data/gqa/images/n1.jpg", "question": "is it?", "gt_answer": "no", "sample_idx": 4}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda name: WRITERS[name](tmp_path / "data")


def records(config, **settings):
    data = DATASETS.build(
        {"type": "MMPretrainDataset", "dataset": {**config, "pipeline": [{"type": "FromMMPretrain", **settings}]}}
    )
    return [data[i] for i in range(len(data))]


def test_ten_answers_come_back(files):
    files("vqav2")
    found = records(VQA, ten_answers=True)
    assert [record["question_ids"] for record in found] == [[9000], [9001], [25000]]
    assert [record["image_id"] for record in found] == [9, 9, 25]
    people = [answers for pairs in TRAIN.values() for _, answers in pairs]
    assert [sorted(record["gt_answers"][0]) for record in found] == [sorted(answers) for answers in people]
    assert found[0]["questions"] == ["what color?"] and found[0]["answer_types"] == ["other"]
    assert found[0]["gt_answer"] == ["red", "blue", "Red"] and found[0]["gt_answer_weights"] == [pytest.approx([0.6, 0.3, 0.1])]


def test_soft_targets_are_those_of_our_vqav2(files):
    """Answers are normalised first: 'Red' is 'red'."""
    files("vqav2")
    found = records(VQA, ten_answers=True, answers=["blue", "red", "yes", "no"])
    expected = torch.tensor([[[0.9, 1, 0, 0]], [[0, 0, 1, 0]], [[0, 0, 0, 1]]])
    torch.testing.assert_close(torch.stack([torch.as_tensor(record["soft_targets"]) for record in found]), expected)


def test_a_data_set_without_numbers_is_numbered(files, tmp_path):
    """Questions of one image share its number, wherever the data lie."""
    files("gqa")
    found = records(GQA, answers="data/gqa/answers.json")
    assert [record["question_ids"] for record in found] == [[0], [1], [2]]
    images = [record["image_id"] for record in found]
    assert images[0] == images[1] != images[2] and all(0 <= image < 2**62 for image in images)
    assert images == [record["image_id"] for record in records({**GQA, "data_root": str(tmp_path / "data/gqa")})]
    assert [record["targets"] for record in found] == [[0], [2], [1]] and found[1]["gt_answers"] == [["cat"]]
    shifted = records(GQA, first_id=7)
    assert shifted[0]["question_ids"] == [7] and shifted[0]["image_id"] == images[0] + 7


def test_two_images(files):
    files("nlvr2")
    nlvr2 = {"type": "mmpretrain.NLVR2", "data_root": "data/nlvr2", "data_prefix": "dev", "ann_file": "dev.json"}
    found = records(nlvr2)
    assert found[0]["img_paths"] == [f"data/nlvr2/dev/dev-10-0-img{side}.png" for side in (0, 1)] and "img_path" not in found[0]
    assert [record["targets"] for record in found] == [[1], [0], [0]]
    assert found[0]["image_id"] == found[1]["image_id"] != found[2]["image_id"]


def test_captions_to_write(files):
    files("coco_caption")
    coco = {"type": "mmpretrain.COCOCaption", "data_root": "data/coco"}
    training = records({**coco, "ann_file": "annotations/coco_karpathy_train.json"}, prompt="a photo of")
    assert [record["question_ids"] for record in training[:2]] == [[0], [1]] and training[0]["questions"] == ["a photo of"]
    assert training[0]["gt_answers"] == [["Caption 0 of a cat 7!"]] and training[0]["image_id"] == 7
    testing = records({**coco, "ann_file": "annotations/coco_karpathy_val.json"})
    assert [(record["image_id"], record["question_ids"]) for record in testing] == [(7, [7]), (184613, [184613])]
    assert len(testing[1]["gt_answers"][0]) == 5
    files("nocaps")
    nocaps = {"type": "mmpretrain.NoCaps", "data_root": "data/nocaps", "data_prefix": {"img_path": "images"}}
    found = records({**nocaps, "ann_file": "annotations/nocaps_val_4500_captions.json"})
    assert [record["question_ids"] for record in found] == [[0]] * 3 + [[1]] * 3  # alike, so that all get one caption
    assert "gt_answers" not in found[0]


def test_texts_of_an_image(files):
    files("flickr30k_retrieval")
    flickr = {
        "type": "mmpretrain.Flickr30kRetrieval",
        "data_root": "data/flickr30k",
        "data_prefix": "images",
        "ann_file": "annotations/dataset_flickr30k.json",
        "split": "test",
    }
    testing = records({**flickr, "test_mode": True})
    assert [record["image_id"] for record in testing] == [0, 1, 2]
    assert [record["question_ids"] for record in testing] == [list(range(5 * i, 5 * i + 5)) for i in range(3)]
    assert testing[1]["questions"] == [f"Caption {i} of image 5." for i in range(5)]
    training = records({**flickr, "split": "train"})
    assert [record["question_ids"] for record in training] == [[i] for i in range(15)]
    assert training[14]["image_id"] == 2 and training[14]["questions"] == ["Caption 4 of image 6."]


def test_a_classifier_learns_from_it(files, make_model):
    """METER, whose answers are classes."""
    files("vsr")
    steps = [
        {"type": "FromMMPretrain", "answers": ["no", "yes"]},
        {"type": "LoadImage"},
        {"type": "mmpretrain.Resize", "scale": (32, 32)},
        {"type": "TokenizeQuestions", "tokenizer": {"type": "WordTokenizer", "words": ["dog", "is"]}, "max_length": 12},
        {"type": "PackVLInputs"},
    ]
    vsr = {"type": "mmpretrain.VSR", "data_root": "data/coco", "data_prefix": "", "ann_file": "annotations/val.json"}
    data = mmpretrain_dataset(dataset={**vsr, "pipeline": steps}, answers=["no", "yes"])
    model = make_model("Dense", {"num_classes": 2}, data_preprocessor={"type": "VisionLanguagePreprocessor"})
    items = [data[i] for i in range(2)]
    batch = {"inputs": [item["inputs"] for item in items], "data_samples": [item["data_samples"] for item in items]}
    inputs = model.data_preprocessor(batch)
    assert inputs["inputs"].targets.tolist() == [1, 0] and data.metainfo["classes"] == ("no", "yes")
    assert torch.isfinite(model(**inputs, mode="loss")["loss_task"])
    assert model(**inputs, mode="predict")[0].pred_scores.shape == (1, 2)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"img_path": "a/1.jpg", "gt_label": 3}, r"has the fields .*: expected 'question', 'text' or 'gt_caption'"),
        ({**BARE, "question": " "}, r"row 4 \(img_path='data/gqa/images/n1.jpg'\) has the texts \[' '\]: expected words"),
        ({**BARE, "image_id": "n16"}, r"image_id='n16': expected a number"),
        ({**BARE, "img_path": None}, r"expected 'image_id' or 'img_path'"),
        ({**BARE, "gt_answer": ["a", "b"], "gt_answer_weight": [1.0]}, r"the answers \['a', 'b'\] with the weights \[1.0\]"),
        ({key: value for key, value in BARE.items() if key != "sample_idx"}, "to know them by"),
        ({"img_path": "a/1.jpg", "text": ["a", "b"], "gt_text_id": [1]}, r"2 texts and gt_text_id=\[1\]"),
    ],
)
def test_broken_records(record, message):
    with pytest.raises(ValueError, match=message):
        FromMMPretrain().transform(dict(record))


def test_answers_that_do_not_fit():
    with pytest.raises(ValueError, match=r"the answers \['no'\]: expected one that is among the 2 classes"):
        FromMMPretrain(answers=["yes", "cat"]).transform(dict(BARE))
    with pytest.raises(ValueError, match=r"the weights \[0.2\] and ten_answers=True: expected tenths that make up 1"):
        FromMMPretrain(ten_answers=True).transform({**BARE, "gt_answer": ["no"], "gt_answer_weight": [0.2]})


def test_answers_that_cleaning_made_one():
    record = {**BARE, "gt_answer": ["tshirt", "red", "tshirt"], "gt_answer_weight": [0.5, 0.2, 0.3]}
    found = FromMMPretrain(ten_answers=True).transform(record)
    assert found["gt_answers"] == [["tshirt"] * 8 + ["red"] * 2] and found["gt_answer_weights"] == [pytest.approx([0.8, 0.2])]


def test_missing_and_broken_files(files, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"mmpretrain.GQA with data_root='data/gqa'.*docs/mmpretrain_data.md tells where"
    ):
        mmpretrain_dataset(dataset=GQA)
    files("gqa")
    path = tmp_path / "data/gqa/annotations/train_balanced_questions.json"
    rows = rows_of(path)
    del rows[1]["answer"]
    write_json(path, rows)
    with pytest.raises(ValueError, match=r"mmpretrain.GQA with .* cannot be read \(KeyError: 'answer'\)"):
        mmpretrain_dataset(dataset=GQA)
    path.write_text("[")
    with pytest.raises(ValueError, match=r"cannot be read \(JSONDecodeError"):
        mmpretrain_dataset(dataset=GQA)
    files("vqav2")
    (tmp_path / "data/coco/train2014/COCO_train2014_000000000025.jpg").unlink()
    with pytest.raises(ValueError, match=r"cannot be read \(KeyError: 25\): .* each image in its folder"):
        mmpretrain_dataset(dataset=VQA)
    with pytest.raises(KeyError, match=r"mmpretrain.VQA2"):
        mmpretrain_dataset(dataset={**VQA, "type": "mmpretrain.VQA2"})


def test_lists_of_answers(tmp_path):
    path = tmp_path / "answers.json"
    with pytest.raises(FileNotFoundError, match=r"answers='.*answers.json': no such file; docs/mmpretrain_data.md"):
        read_answers(str(path))
    for content, message in (
        ("red\nblue", "is no JSON"),
        ('["a", "a"]', "expected a list of different"),
        ("{}", r"holds '\{\}'"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_answers(str(path))


def test_it_needs_no_data_set_of_ours(files):
    """mmpretrain's class stands in a config by itself; the model then has no names of its answers."""
    files("gqa")
    data = DATASETS.build({**GQA, "pipeline": [{"type": "FromMMPretrain"}]})
    assert data[1]["questions"] == ["what is on the left?"] and "classes" not in data.metainfo
