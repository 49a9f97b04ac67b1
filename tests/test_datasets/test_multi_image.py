import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from official_files import write_image, write_nlvr2, write_vqav2
from PIL import Image
from torchvision.transforms import functional

from smarttrim_mm.datasets.multi_image import LoadImages, PackVLInputs, ResizeAndCrop
from smarttrim_mm.datasets.nlvr2 import NLVR2
from smarttrim_mm.datasets.vqav2 import VQAv2
from smarttrim_mm.registry import TRANSFORMS

TOKENIZE = {
    "type": "TokenizeQuestions",
    "tokenizer": {"type": "WordTokenizer", "words": ["there", "are", "dogs", "is", "it"]},
    "max_length": 8,
}


def test_two_images_are_packed(tmp_path):
    pipeline = [{"type": "LoadImages", "transforms": [{"type": "ResizeAndCrop"}]}, TOKENIZE, {"type": "PackVLInputs"}]
    dataset = NLVR2(split="dev", data_root=str(write_nlvr2(tmp_path)), image_size=4, pipeline=pipeline)
    item = dataset[1]
    assert item["inputs"].dtype == torch.uint8 and item["inputs"].shape == (2, 3, 4, 4)
    assert item["inputs"][:, :, 0, 0].tolist() == [[0, 100, 200], [1, 100, 200]]  # BGR, left and right
    sample = item["data_samples"]
    assert sample.image_id == 0 and sample.identifiers == ["dev-10-0-1"] and len(sample.img_paths) == 2
    assert sample.targets.tolist() == [0] and sample.question_ids.tolist() == [1]
    assert sample.input_ids[0][:3] == [0, 4, 5] and "soft_targets" not in sample and "img_path" not in sample


def test_one_image_with_soft_targets(tmp_path):
    pipeline = [{"type": "LoadImage"}, {"type": "ResizeAndCrop"}, TOKENIZE, {"type": "PackVLInputs"}]
    dataset = VQAv2(split="train", data_root=str(write_vqav2(tmp_path)), num_classes=6, image_size=4, pipeline=pipeline)
    item = dataset[0]
    sample = item["data_samples"]
    assert item["inputs"].shape == (3, 4, 4) and item["inputs"].is_contiguous()
    assert sample.soft_targets.shape == (2, 6) and sample.soft_targets.dtype == torch.float32
    assert sample.answer_types == ["other", "yes/no"] and len(sample.gt_answers[1]) == 10
    assert sample.img_path.endswith("000000000009.jpg") and "targets" not in sample


def test_random_steps_draw_anew_for_each_image(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    noise = np.random.randint(0, 255, (6, 8, 3), np.uint8)
    for path in paths:
        Image.fromarray(noise).save(path)
    steps = LoadImages(transforms=[{"type": "RandomFlip", "prob": 0.5}], imdecode_backend="pillow")
    equal = [np.array_equal(*steps({"img_paths": paths})["img"]) for _ in range(20)]
    assert any(equal) and not all(equal)


def test_images_of_different_sizes(tmp_path):
    for i in range(2):
        write_image(tmp_path / f"{i}.png", size=(6, 8 + i))
    record = {"img_paths": [str(tmp_path / f"{i}.png") for i in range(2)]}
    with pytest.raises(ValueError, match=r"img_paths=.*are \[\(6, 8\), \(6, 9\)\] pixels high and wide.*add ResizeAndCrop"):
        Compose([LoadImages(), PackVLInputs()])(record)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"img_path='{tmp_path}/no.png': no such file"):
        LoadImages()({"img_paths": [f"{tmp_path}/no.png"]})


@pytest.mark.parametrize("size", [(37, 50), (51, 40), (40, 40), (12, 17)])
def test_resizing_equals_torchvisions(size):
    image = np.random.randint(0, 255, (*size, 3), np.uint8)
    expected = functional.resize(Image.fromarray(image), 16, functional.InterpolationMode.BICUBIC)
    expected = np.asarray(functional.center_crop(expected, [16, 16]))
    result = TRANSFORMS.build({"type": "ResizeAndCrop"})({"img": image, "image_size": 16})
    assert result["img_shape"] == (16, 16)
    np.testing.assert_array_equal(result["img"], expected)


def test_the_size_must_be_known():
    with pytest.raises(ValueError, match=r"'a\.jpg' comes without image_size; give the data set the argument image_size"):
        ResizeAndCrop()({"img": np.zeros((4, 4, 3), np.uint8), "img_path": "a.jpg"})
