import pytest
import torch
from mmpretrain.structures import DataSample

from smarttrim_mm.models.data_preprocessor import VisionLanguagePreprocessor


def item(
    image_id: int, input_ids: list[list[int]], size: tuple[int, int] = (2, 3), value: int = 0, targets: bool = True
) -> dict:
    sample = DataSample()
    sample.set_field(image_id, "image_id")
    sample.set_field(input_ids, "input_ids")
    sample.set_field(torch.arange(len(input_ids)) + 10 * image_id, "question_ids")
    if targets:
        sample.set_field(torch.full((len(input_ids),), image_id), "targets")
    return {"inputs": torch.full((3, *size), value, dtype=torch.uint8), "data_samples": sample}


def batch(*items: dict) -> dict:
    return {key: [one[key] for one in items] for key in ("inputs", "data_samples")}


def test_images_with_several_questions_become_pairs():
    data = batch(item(7, [[0, 5, 2], [0, 5, 6, 2]]), item(3, [[0, 8, 2]]))
    result = VisionLanguagePreprocessor()(data)
    inputs = result["inputs"]
    assert result["data_samples"] is data["data_samples"]
    assert inputs.images.shape == (2, 3, 2, 3)
    assert inputs.image_index.tolist() == [0, 0, 1] and inputs.image_ids.tolist() == [7, 3]
    assert inputs.input_ids.tolist() == [[0, 5, 2, 1], [0, 5, 6, 2], [0, 8, 2, 1]]
    assert inputs.text_mask.tolist() == [[True] * 3 + [False], [True] * 4, [True] * 3 + [False]]
    assert inputs.special_mask.tolist() == [
        [True, False, True, False],
        [True, False, False, True],
        [True, False, True, False],
    ]
    assert inputs.sample_ids.tolist() == [70, 71, 30] and inputs.targets.tolist() == [7, 7, 3]


def test_pixels_are_normalised_as_rgb():
    data = batch(item(0, [[0, 2]]))
    data["inputs"][0][0] = 255  # blue: mmcv loads BGR
    images = VisionLanguagePreprocessor(mean=[51, 0, 0], std=[51, 1, 255])(data)["inputs"].images
    assert images[0, :, 0, 0].tolist() == [-1.0, 0.0, 1.0]
    images = VisionLanguagePreprocessor(to_rgb=False)(data)["inputs"].images
    assert images[0, :, 0, 0].tolist() == [1.0, -1.0, -1.0]


def test_images_with_one_question_each_need_no_index():
    assert VisionLanguagePreprocessor()(batch(item(0, [[0, 2]]), item(1, [[0, 2]])))["inputs"].image_index is None
    assert VisionLanguagePreprocessor()(batch(item(0, [[0, 2], [0, 2]])))["inputs"].image_index.tolist() == [0, 0]


def test_texts_about_two_images_become_pairs_that_share_them():
    """NLVR2: each text is read with both images of its item; the two pairs make one sample."""
    data = batch(item(4, [[0, 5, 2]]), item(9, [[0, 6, 7, 2]]))
    data["inputs"] = [torch.stack([one, one + 1]) for one in data["inputs"]]
    inputs = VisionLanguagePreprocessor()(data)["inputs"]
    assert inputs.images.shape == (4, 3, 2, 3) and inputs.image_index is None
    assert inputs.image_ids.tolist() == [8, 9, 18, 19] and inputs.sample_ids.tolist() == [80, 81, 180, 181]
    assert inputs.text_index.tolist() == [0, 0, 1, 1] and inputs.text_ids.tolist() == [40, 90]
    assert inputs.pairs_per_sample == 2 and inputs.targets.tolist() == [4, 9]
    data = batch(item(4, [[0, 5, 2], [0, 6, 2]]))
    data["inputs"] = [torch.stack([one, one + 1]) for one in data["inputs"]]
    inputs = VisionLanguagePreprocessor()(data)["inputs"]
    assert inputs.image_index.tolist() == [0, 1, 0, 1] and inputs.text_index.tolist() == [0, 0, 1, 1]


def test_texts_to_rank_make_one_sample_in_training():
    data = batch(item(4, [[0, 5, 2], [0, 6, 2], [0, 7, 2]]), item(2, [[0, 5, 2], [0, 6, 2], [0, 7, 2]]))
    for sample in data["data_samples"]:
        sample.set_field(torch.tensor([0]), "targets")
    ranking = VisionLanguagePreprocessor(rank_texts=True)
    inputs = ranking(data, training=True)["inputs"]
    assert inputs.pairs_per_sample == 3 and inputs.targets.tolist() == [0, 0]
    assert ranking(data, training=False)["inputs"].pairs_per_sample == 1
    with pytest.raises(ValueError, match=r"\[3, 1\] texts to rank: expected equal numbers"):
        ranking(batch(item(4, [[0, 5, 2]] * 3), item(2, [[0, 5, 2]])), training=True)


def test_soft_targets_come_first():
    data = batch(item(4, [[0, 5, 2]]))
    data["data_samples"][0].set_field(torch.tensor([[0.3, 1.0]]), "soft_targets")
    assert VisionLanguagePreprocessor()(data)["inputs"].targets.tolist() == [[pytest.approx(0.3), 1.0]]


def test_targets_may_be_unknown():
    assert VisionLanguagePreprocessor()(batch(item(0, [[0, 2]], targets=False)))["inputs"].targets is None


def test_everything_follows_the_device():
    inputs = VisionLanguagePreprocessor().to("meta")(batch(item(0, [[0, 2], [0, 5, 2]])))["inputs"]
    assert {value.device.type for value in vars(inputs).values() if isinstance(value, torch.Tensor)} == {"meta"}


def test_buffers_stay_out_of_checkpoints():
    assert not VisionLanguagePreprocessor().state_dict()


def test_images_of_different_sizes():
    with pytest.raises(ValueError, match=r"\[\(3, 2, 3\), \(3, 4, 4\)\]: expected one; add Resize"):
        VisionLanguagePreprocessor()(batch(item(0, [[0, 2]]), item(1, [[0, 2]], size=(4, 4))))


@pytest.mark.parametrize("input_ids", [[101, 5, 102], [0, 5, 6], [0, 1, 2]])
def test_ids_of_another_tokenizer(input_ids):
    with pytest.raises(ValueError, match=rf"input_ids \[{input_ids[0]}, .*special_ids=\(0, 2\).*pad_id=1"):
        VisionLanguagePreprocessor()(batch(item(0, [[0, 4, 2], input_ids])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [0.5] * 3}, r"mean=\[0.5, 0.5, 0.5\]: expected the scale of the pixels, 0-255"),
        ({"std": [1.0]}, r"std=\[1.0\]: expected three numbers"),
        ({"std": [1, 0, 1]}, r"std=\[1, 0, 1\]: expected positive"),
    ],
)
def test_bad_normalisation(arguments, message):
    with pytest.raises(ValueError, match=message):
        VisionLanguagePreprocessor(**arguments)


def test_answers_are_texts_in_training_and_classes_in_evaluation():
    data = batch(item(4, [[0, 5, 2], [0, 6, 2]]), item(2, [[0, 5, 2]]))
    answers = [([[[0, 7, 2]], [[0, 8, 9, 2], [0, 7, 2]]], [[1.0], [0.7, 0.3]]), ([[[0, 5, 2]]], [[1.0]])]
    for sample, (ids, weights) in zip(data["data_samples"], answers, strict=True):
        sample.set_field(ids, "answer_ids")
        sample.set_field(weights, "answer_weights")
    texts = VisionLanguagePreprocessor()(data, training=True)["inputs"].targets
    assert texts.samples == 3 and texts.sample.tolist() == [0, 1, 1, 2]
    assert texts.input_ids.tolist() == [[0, 7, 2, 1], [0, 8, 9, 2], [0, 7, 2, 1], [0, 5, 2, 1]]
    assert texts.tokens.tolist() == [7, 2, 8, 9, 2, 7, 2, 5, 2]
    torch.testing.assert_close(texts.token_weights, torch.tensor([1, 1, 0.7, 0.7, 0.7, 0.3, 0.3, 1, 1]))
    chosen = texts.select(torch.tensor([1, 0]))
    assert chosen.tokens.tolist() == [8, 9, 2, 7, 2, 7, 2] and chosen.sample.tolist() == [0, 0, 1]
    assert VisionLanguagePreprocessor()(data, training=False)["inputs"].targets.tolist() == [4, 4, 2]


def boxed(image_id: int, *boxes: list[float]) -> dict:
    one = item(image_id, [[0, 5, 2]] * max(1, len(boxes)), size=(4, 8), targets=False)
    one["data_samples"].set_field(torch.tensor(boxes), "gt_bboxes")
    return one


def test_boxes_become_shares_of_the_image():
    """In training only: in evaluation a box is written without them."""
    data = batch(boxed(0, [0.0, 1.0, 4.0, 2.0], [8.0, 4.0, 8.0, 4.0]), boxed(1, [0.0, 0.0, 8.0, 4.0]))
    targets = VisionLanguagePreprocessor()(data, training=True)["inputs"].targets
    assert targets.boxes.tolist() == [[0.25, 0.375, 0.5, 0.25], [1.0, 1.0, 0.0, 0.0], [0.5, 0.5, 1.0, 1.0]]
    inputs = VisionLanguagePreprocessor()(data, training=True)["inputs"]
    assert inputs.select(torch.tensor([2])).targets.boxes.tolist() == [[0.5, 0.5, 1.0, 1.0]]
    assert inputs.to("meta").targets.boxes.is_meta
    assert VisionLanguagePreprocessor()(data)["inputs"].targets is None


@pytest.mark.parametrize("box", [[0, 0, 9, 2], [0, 0, 2, 5], [-1, 0, 2, 2], [3, 0, 2, 2], [0, 3, 2, 2]])
def test_boxes_outside_their_images_are_refused(box):
    with pytest.raises(ValueError, match=r"not in an image of 4 x 8 pixels: expected one box a text"):
        VisionLanguagePreprocessor()(batch(boxed(0, list(map(float, box)))), training=True)


def test_boxes_are_one_a_text():
    one = boxed(0, [0.0, 0.0, 1.0, 1.0])
    one["data_samples"].set_field([[0, 5, 2], [0, 6, 2]], "input_ids")
    one["data_samples"].set_field(torch.arange(2), "question_ids")
    with pytest.raises(ValueError, match="1 gt_bboxes for 2 texts"):
        VisionLanguagePreprocessor()(batch(one), training=True)
