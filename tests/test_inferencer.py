"""The inferencer computes what a test computes, of one's own images; what does not fit is told before anything runs."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import small_tasks
import torch
from mmengine.config import ConfigDict
from PIL import Image

from smarttrim_mm import TrimInferencer
from smarttrim_mm.engine.building import build_loader
from smarttrim_mm.models.all_pairs import PairScorer

SMARTTRIM = {"type": "SmartTrim", "stable_init": False}
VQA, NLVR2, CAPTIONS = "METER VQA", "METER NLVR2", "BLIP captions"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Builds the inferencer of a task once."""
    made = {}

    def build(name, policy=SMARTTRIM, threshold=0.25):
        key = (name, str(policy), threshold)
        if key not in made:
            made[key] = TrimInferencer(*small_tasks.write_task(name, tmp_path_factory.mktemp("task"), policy, threshold))
        return made[key]

    return build


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A task's config and checkpoint, whose description may be changed."""
    files = small_tasks.write_task(VQA, tmp_path_factory.mktemp("weights"), SMARTTRIM)

    def write(path: Path | None = None, **meta):
        if path is None:
            return files
        content = torch.load(files[1], weights_only=True)
        torch.save({**content, "meta": meta}, path)
        return files[0], str(path)

    return write


@pytest.fixture
def picture(tmp_path) -> str:
    path = tmp_path / "own.png"
    assert cv2.imwrite(str(path), np.random.default_rng(3).integers(0, 255, (50, 44, 3), np.uint8))
    return str(path)


def given(inferencer, limit=None):
    """The images and texts of the config's test data."""
    dataset = build_loader(inferencer.cfg, "test").dataset
    records = [dataset.get_data_info(i) for i in range(len(dataset))][:limit]
    images = [record.get("img_paths") or record["img_path"] for record in records]
    return images, [record["questions"] for record in records] if inferencer.reads_text else None


@torch.no_grad()
def as_tested(inferencer):
    """Data samples of the config's test data, one a text, as a test has them."""
    model, loader = inferencer.model, build_loader(inferencer.cfg, "test", inferencer.model)
    for data in loader:
        for sample in model.test_step(data):
            for i in range(len(sample.questions)):
                trim = {name: float(value[i]) for name, value in sample.trim.items()}
                said = sample.get("pred_caption", None) or sample.get("pred_answers", None)
                said = sample.pred_scores if said is None else said
                yield said if isinstance(said, str) else said[i], trim


@pytest.mark.parametrize("name", [name for name in small_tasks.TASKS if "retrieval" not in name])
def test_what_it_computes_is_what_a_test_computes(make, name):
    inferencer = make(name)
    results = inferencer(*given(inferencer), batch_size=2)
    found = list(as_tested(inferencer))
    assert len(results) == len(found) > 1
    for result, (said, trim) in zip(results, found, strict=True):
        if isinstance(said, str):
            assert said != "" and said in (result.caption, result.answer)
        else:
            assert torch.equal(result.scores, said)
            assert not result.scores.is_inference()  # a caller may change them
            assert result.answer == inferencer.classes[int(said.argmax())] and result.score == float(said.max())
        spent = result.spent
        assert 1 < spent.speedup == trim["dense_multiply_adds"] / trim["multiply_adds"]
        ratios = {f"kept/{key}": kept / number for key, (kept, number) in spent.tokens.items()}
        ratios |= {f"heads/{key}": on / number for key, (on, number) in spent.heads.items()}
        assert ratios.keys() == {key for key in trim if "multiply_adds" not in key and key != "packed"}
        assert all(abs(ratios[key] - trim[key]) < 1e-6 for key in ratios)


@pytest.mark.parametrize("name", [name for name in small_tasks.TASKS if "retrieval" in name])
def test_scores_of_pairs_are_those_of_retrieval(make, name):
    inferencer = make(name, {**SMARTTRIM, "streams": ["image"]}, 0.5)  # which leaves the captions different
    images, texts = given(inferencer)
    results = inferencer(images, texts, batch_size=len(images))
    model = inferencer.model
    (data,) = list(
        build_loader({**inferencer.cfg, "test_dataloader": {**inferencer.cfg.test_dataloader, "batch_size": 9}}, "test")
    )
    inputs = model.data_preprocessor(data, False)["inputs"]
    with torch.no_grad():
        scores, _ = PairScorer(model, [model.data_preprocessor.texts(
            [ids for sample in data["data_samples"] for ids in sample.input_ids], inputs.sample_ids
        )]).score(inputs)  # fmt: skip
    expected = scores[inputs.image_index, torch.arange(len(inputs.sample_ids))].tolist()
    assert [result.score for result in results] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) > len(images)
    assert any(kept < number for result in results for kept, number in result.spent.tokens.values())
    assert all(result.answer is result.scores is result.caption is None for result in results)
    assert all(result.said == f"score {result.score:.2f}" and result.spent.multiply_adds > 0 for result in results)


def same(one, other) -> None:
    assert (one.images, one.text, one.answer, one.caption) == (other.images, other.text, other.answer, other.caption)
    assert one.spent.tokens == other.spent.tokens and one.spent.heads == other.spent.heads
    assert one.spent.multiply_adds == pytest.approx(other.spent.multiply_adds)
    if one.scores is not None:
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-5)
    elif one.score is not None:
        assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("name", sorted(small_tasks.TASKS))
def test_an_input_alone_has_the_same_result(make, name):
    inferencer = make(name)
    images, texts = given(inferencer)
    together = inferencer(images, texts, batch_size=5)
    alone = [
        result
        for i, image in enumerate(images)
        for text in ([None] if texts is None else texts[i])
        for result in inferencer(image, text)
    ]
    assert len(alone) == len(together)
    for one, other in zip(alone, together, strict=True):
        same(one, other)


def test_random_draws_are_the_same_in_any_batch(make):
    """They depend on identities, and so does what is drawn: other questions have other draws."""
    inferencer = make(VQA, {"type": "Random", "keep_ratio": 0.6, "layers": {"text": []}}, 0.4)
    images, texts = given(inferencer)
    together = inferencer(images, texts)
    same(inferencer(images[1], texts[1])[0], together[-1])
    assert not torch.equal(together[0].scores, together[1].scores)


# ---- pictures in memory


def test_pictures_in_memory_are_their_files(make, picture):
    inferencer = make(VQA)
    (expected,) = inferencer(picture, "is it red?")
    opened = Image.open(picture)
    rgb = np.asarray(opened)
    forms = [opened, rgb, Path(picture)]
    for form in forms:
        (found,) = inferencer(form, "is it red?")
        assert torch.equal(found.scores, expected.scores) and found.spent == expected.spent
    (found,) = inferencer(cv2.imread(picture), "is it red?", channel_order="bgr")
    assert torch.equal(found.scores, expected.scores)
    assert found.images == ("picture of 44 x 50 pixels (RGB)",)
    (swapped,) = inferencer(rgb[..., ::-1], "is it red?")
    assert not torch.equal(swapped.scores, expected.scores)


@pytest.mark.parametrize("backend", ["cv2", "pillow"])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16"])
def test_grey_and_transparent_pictures_are_read_as_their_files(mode, backend, tmp_path):
    from smarttrim_mm.datasets.transforms import LoadImage, LoadPicture

    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 255, (9, 7, 4), np.uint8)).convert("RGBA")
    image = Image.fromarray(generator.integers(0, 65535, (9, 7), np.uint16)) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / "file.png")
    step = LoadImage(imdecode_backend=backend)
    expected = step({"img_path": str(tmp_path / "file.png")})["img"]
    found = LoadPicture(step)({"img_path": image})
    assert np.array_equal(found["img"], expected) and expected.shape == found["img_shape"] + (3,) == (9, 7, 3)


def test_pictures_are_turned_as_their_files_are(tmp_path):
    from smarttrim_mm.datasets.transforms import LoadImage, LoadPicture

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 16, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    image.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    step = LoadImage(imdecode_backend="pillow")
    expected = step({"img_path": str(tmp_path / "turned.jpg")})["img"]
    found = LoadPicture(step)({"img_path": Image.open(tmp_path / "turned.jpg")})["img"]
    assert expected.shape == (16, 8, 3) and np.array_equal(found, expected)


# ---- which text belongs to which image


def test_texts_find_their_images(make, picture):
    inferencer = make(VQA)

    def texts(*arguments):
        return [(result.images[0] == picture, result.text) for result in inferencer(*arguments)]

    other = np.zeros((20, 20, 3), np.uint8)
    assert texts(picture, ["is it a?", "is it b?"]) == [(True, "is it a?"), (True, "is it b?")]
    assert texts([picture, other], "red?") == [(True, "red?"), (False, "red?")]
    assert texts([picture, other], ["a?", "b?"]) == [(True, "a?"), (False, "b?")]
    assert texts([other, picture], [["a?"], ("b?", "c?")]) == [(False, "a?"), (True, "b?"), (True, "c?")]


def test_results_are_plain_values(make, picture):
    (result,) = make(VQA)(picture, "is it red?")
    told = json.loads(json.dumps(result.to_dict(2)))
    assert told["images"] == [picture] and told["text"] == "is it red?" and "caption" not in told
    assert told["scores"] == [list(row) for row in result.best(2)] and told["scores"][0] == [told["answer"], told["score"]]
    assert len(result.to_dict()["scores"]) == 6 and sum(score for _, score in result.best()) == pytest.approx(1, abs=1e-5)
    assert told["spent"]["tokens"]["image.0/image"][1] == 17  # 4 x 4 patches and the class token
    (caption,) = make(CAPTIONS)(picture)
    assert caption.to_dict().keys() == {"images", "caption", "spent"}


def test_pictures_of_what_was_kept(make, picture, tmp_path):
    make(VQA)([picture, np.zeros((20, 20, 3), np.uint8)], [["a?", "red?"], "b?"], vis_dir=tmp_path / "kept")
    kinds = ["head_map", "head_scores", "keep_scores", "pruned_patches"]
    stems = ["0000_own", "0001_picture"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        f"{stem}_{kind}.png" for stem in stems for kind in kinds
    ]
    names = [f"{stem}_pruned_patches.png" for stem in stems]
    heights = [Image.open(tmp_path / "kept" / name).height for name in names]
    assert heights[0] > heights[1], "a row a question"


class Rows:
    """A step ahead of the images that reads a data set's own rows."""

    prompt = "this is"

    def __call__(self, results):
        raise AssertionError("given pictures have no row")


def test_steps_that_read_rows_are_left_out():
    from smarttrim_mm.datasets.given import given_pipeline
    from smarttrim_mm.inferencer import _prompt
    from smarttrim_mm.registry import TRANSFORMS

    kinds = [{"type": "TokenizeQuestions", "tokenizer": small_tasks.TOKENIZER, "max_length": 9}, {"type": "LoadImage"}]
    steps = [Rows(), *map(TRANSFORMS.build, kinds), TRANSFORMS.build({"type": "PackVLInputs"})]
    made = given_pipeline(steps).transforms
    assert [type(step).__name__ for step in made] == ["TokenizeQuestions", "LoadPicture", "PackVLInputs"]
    assert _prompt(ConfigDict(type="NLVR2"), steps) == "this is"
    assert _prompt(ConfigDict(type="COCOKarpathyCaption"), steps) == "a picture of"
    with pytest.raises(ValueError, match="NLVR2 of test_dataloader has no prompt"):
        _prompt(ConfigDict(type="NLVR2"), steps[1:])


# ---- names of the classes


def test_the_data_set_need_not_be_there(weights, picture, tmp_path):
    away = {"test_dataloader.dataset.data_root": str(tmp_path / "nowhere")}
    files = weights(tmp_path / "of_training.pth", dataset_meta={"classes": tuple("abcdef")})
    named = TrimInferencer(*files, cfg_options=away)
    assert named.classes == tuple("abcdef")
    numbered = TrimInferencer(*weights(), cfg_options=away)
    (result,) = numbered(picture, "is it red?")
    assert numbered.classes is None and result.answer == f"class {int(result.scores.argmax())}"


def test_other_names_than_answers_are_refused(weights, tmp_path):
    with pytest.raises(ValueError, match="6 answers apart, and 2 are named, from 'no' to 'yes'"):
        TrimInferencer(*weights(tmp_path / "other.pth", dataset_meta={"classes": ("no", "yes")}))


# ---- speed-up


def test_the_speedup_is_the_checkpoints(weights, tmp_path):
    assert TrimInferencer(*weights()).speedup is None
    trained = {"model.budget": {"type": "ComputeBudget", "speedup": 2.08}}
    assert TrimInferencer(*weights(), speedup=2.08, cfg_options=trained).speedup == 2.08
    with pytest.raises(ValueError, match=r"speedup is 3, but .*was trained for 2.08.*calibrate.py .* --speedup 3 --out"):
        TrimInferencer(*weights(), speedup=3, cfg_options=trained)
    calibrated = weights(tmp_path / "calibrated.pth", calibration={"target": 2.5})
    assert TrimInferencer(*calibrated, speedup=2.5, cfg_options=trained).speedup == 2.5
    with pytest.raises(ValueError, match=r"was calibrated to 2.5"):
        TrimInferencer(*calibrated, speedup=2.08, cfg_options=trained)
    dense = {"model.policy": {"_delete_": True, "type": "Dense"}}
    with pytest.raises(ValueError, match="has no known speed-up"):
        TrimInferencer(*weights(), speedup=2)
    assert TrimInferencer(*weights(), speedup=1, cfg_options=dense).speedup == 1


# ---- what does not fit


def damaged(path: str, tmp_path) -> str:
    half = tmp_path / "half.png"
    half.write_bytes(Path(path).read_bytes()[:900])
    return str(half)


@pytest.mark.parametrize(
    ("images", "texts", "error", "match"),
    [
        ("nowhere.png", "a?", FileNotFoundError, r"images is 'nowhere.png': no such file"),
        (["PICTURE", "nowhere.png"], "a?", FileNotFoundError, r"images\[1\] is 'nowhere.png'"),
        ("https://a.org/b.png", "a?", ValueError, "'https://a.org/b.png': nothing is downloaded"),
        ("HALF", "a?", ValueError, r"half\.png.*cannot be read"),
        ([], "a?", ValueError, "images is empty"),
        (7, "a?", TypeError, "images is a int"),
        (["PICTURE", 7], "a?", TypeError, r"images\[1\] is a int; expected a path"),
        (np.zeros((4, 4, 3)), "a?", ValueError, r"images is an array of float64 \[4, 4, 3\]; expected uint8"),
        (np.zeros((4, 4, 2), np.uint8), "a?", ValueError, r"uint8 \[4, 4, 2\]"),
        (Image.new("CMYK", (4, 4)), "a?", ValueError, r"\(CMYK\): expected one of the modes RGB"),
        ("PICTURE", None, ValueError, "texts is None, but this model reads a text"),
        ("PICTURE", "  ", ValueError, "texts has an empty text"),
        (["PICTURE"], [["a?", ""]], ValueError, r"texts\[0\] has an empty text \(''\)"),
        (["PICTURE"], [[]], ValueError, r"texts\[0\] is empty"),
        (["PICTURE"], ["a?", "b?"], ValueError, "texts has 2 entries for 1 images"),
        ("PICTURE", [3], TypeError, r"texts\[0\] is a int"),
        ("PICTURE", ["a?", None], TypeError, r"texts\[0\] has a NoneType; expected a text"),
    ],
)
def test_what_does_not_fit_is_refused(make, picture, tmp_path, images, texts, error, match):
    files = {"PICTURE": picture, "HALF": damaged(picture, tmp_path)}

    def filled(value):
        return [filled(one) for one in value] if isinstance(value, list) else files.get(str(value), value)

    with pytest.raises(error, match=match):
        make(VQA)(filled(images), texts)


def test_a_truncated_picture_of_pillow_is_named(make, picture, tmp_path):
    with Image.open(damaged(picture, tmp_path)) as image, pytest.raises(ValueError, match=r"picture of .* cannot be read"):
        make(VQA)(image, "a?")


def test_an_image_of_another_size_is_named(make, weights, picture, tmp_path):
    """Where the pipeline does not resize, alone and beside others."""
    pipeline = make(VQA).cfg.test_dataloader.dataset.pipeline
    steps = [step for step in pipeline if "scale" not in step]
    assert len(steps) == len(pipeline) - 1
    inferencer = TrimInferencer(*weights(), cfg_options={"test_dataloader.dataset.pipeline": steps})
    fitting, other = (str(tmp_path / f"{name}.png") for name in ("fitting", "other"))
    Image.new("RGB", (32, 32)).save(fitting)
    Image.new("RGB", (40, 24)).save(other)
    for images in (other, [fitting, other], [other, fitting]):
        with pytest.raises(ValueError, match=r"images .*: .*other\.png is 40 x 24 pixels"):
            inferencer(images, "a?")
    assert len(inferencer(fitting, "a?")) == 1


def test_texts_and_images_are_those_of_the_model(make, picture, weights):
    with pytest.raises(ValueError, match=r"texts is 'a cat', but this model answers about images alone"):
        make(CAPTIONS)(picture, "a cat")
    with pytest.raises(ValueError, match="images is one image, but this model's texts are about 2 images each"):
        make(NLVR2)(picture, "two cats")
    with pytest.raises(ValueError, match=r"images\[0\] is 3 images, but"):
        make(NLVR2)([[picture] * 3], "two cats")
    assert len(make(NLVR2)((picture, picture), ["two cats", "a dog"])) == 2
    with pytest.raises(ValueError, match="channel_order is 'bgra'"):
        make(VQA)(picture, "a?", channel_order="bgra")
    with pytest.raises(ValueError, match="batch_size is 0"):
        make(VQA)(picture, "a?", batch_size=0)
    resized = {"test_dataloader.dataset.pipeline.1.scale": (16, 16)}
    with pytest.raises(ValueError, match=r"images are \(16, 16\) pixels; expected 32 by 32"):
        TrimInferencer(*weights(), cfg_options=resized)(picture, "a?")


def test_config_checkpoint_and_device_are_checked(weights, tmp_path):
    config, checkpoint = weights()
    with pytest.raises(FileNotFoundError, match=r"no\.py"):
        TrimInferencer("no.py", checkpoint)
    with pytest.raises(FileNotFoundError, match=r"no\.pth: no such checkpoint"):
        TrimInferencer(config, tmp_path / "no.pth")
    with pytest.raises(ValueError, match=r"device is 'gpu'"):
        TrimInferencer(config, checkpoint, device="gpu")
    other, _ = small_tasks.write_task(NLVR2, tmp_path, SMARTTRIM)
    with pytest.raises(ValueError, match=r"of another task than the config's model; nothing was loaded"):
        TrimInferencer(other, checkpoint)
    with pytest.raises(ValueError, match=r"no test_dataloader\.dataset\.pipeline"):
        TrimInferencer(config, checkpoint, cfg_options={"test_dataloader": None})
    steps = [{"type": "PackVLInputs"}]
    with pytest.raises(ValueError, match="the test pipeline has the steps PackVLInputs: expected one that loads images"):
        TrimInferencer(config, checkpoint, cfg_options={"test_dataloader.dataset.pipeline": steps})


def test_the_package_is_imported_without_the_inferencer():
    code = "import sys, smarttrim_mm; assert 'smarttrim_mm.inferencer' not in sys.modules and 'mmpretrain' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
