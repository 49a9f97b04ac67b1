"""``tools/convert_checkpoint.py`` in this process."""

import re

import pytest
import torch
from public_checkpoints import meter_shapes, meter_weights, write_lightning

from smarttrim_mm.backbones.meter import METER
from smarttrim_mm.backbones.meter_checkpoint import resize_positions
from smarttrim_mm.engine import conversion
from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.testing import random_inputs
from smarttrim_mm.utils.checkpoint_io import CheckpointError, UnsafeCheckpointError, load_checkpoint_file

POSITIONS = "vit_model.visual.positional_embedding"


@pytest.fixture
def config(tmp_path) -> str:
    backbone = METER.small_configs()["shared images"]
    path = tmp_path / "small_public.py"
    path.write_text(f"model = dict(type='TrimmedVLM', backbone={backbone!r}, policy=dict(type='Dense'))\n")
    return str(path)


@pytest.fixture
def convert(tmp_path, config):
    """Converts weights written as Lightning does, for the small config."""

    def run(weights, *options: str, **more: object) -> dict:
        source, target = write_lightning(tmp_path / "public.ckpt", weights, **more), tmp_path / "ours.pth"
        conversion.main([str(source), str(target), "--config", config, *options])
        return load_checkpoint_file(target)

    return run


def test_the_converted_checkpoint_is_one_of_ours(convert, config, tmp_path, capsys):
    public = meter_weights("vqa", blocks=4)
    content = convert(public)
    assert content["meta"] == {"converted_from": "public.ckpt"}
    weights = {name.removeprefix("backbone."): value for name, value in content["state_dict"].items()}
    assert all(torch.equal(value, public[name]) for name, value in weights.items())
    trained = METER(**{k: v for k, v in METER.small_configs()["shared images"].items() if k != "type"}).eval()
    trained.load_state_dict(weights)
    model = build_model(read_config(config), str(tmp_path / "ours.pth"))
    inputs = random_inputs(model.backbone.input_format, [5, 3])
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), trained.host_forward(inputs), atol=1e-5, rtol=0)
    said = capsys.readouterr().out
    assert re.search(r"used +6  vqa_classifier\n", said)
    assert re.search(r"left out +12  vit_model: the block after METER's last\n", said)
    assert said.rstrip().endswith("ours.pth")


def test_another_image_size(convert, capsys):
    public = meter_weights("vqa", token_types=3)
    weights = convert(public, "--image-size", "48")["state_dict"]
    assert torch.equal(weights[f"backbone.{POSITIONS}"], resize_positions(public[POSITIONS], 6))
    said = capsys.readouterr().out
    assert f"changed       1  {POSITIONS}: resized bicubically from 4 x 4 to 6 x 6 patches, class row kept" in said
    assert "changed       1  token_type_embeddings.weight: the first 2 of 3 rows" in said


def test_an_impossible_image_size(convert):
    with pytest.raises(ValueError, match="image_size is 30, which patch_size 8 does not divide"):
        convert(meter_weights("vqa"), "--image-size", "30")


def test_nothing_is_overwritten_without_force(convert, tmp_path):
    (tmp_path / "ours.pth").write_text("precious")
    with pytest.raises(FileExistsError, match=r"ours\.pth exists; name another file, or add --force"):
        convert(meter_weights("vqa"))
    assert (tmp_path / "ours.pth").read_text() == "precious"
    assert "backbone.vqa_classifier.3.bias" in convert(meter_weights("vqa"), "--force")["state_dict"]


@pytest.mark.parametrize(
    ("task", "said"), [("pretrain", "heads of the file: itm_score, mlm_score"), ("snli", "heads of the file: snli_classifier")]
)
def test_another_task_is_refused(convert, tmp_path, task, said):
    with pytest.raises(ValueError, match=f"no head 'vqa_classifier'; {said}"):
        convert(meter_weights(task))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["public.ckpt", "small_public.py"]


class Trap:
    def __reduce__(self):
        return print, ("code has run",)


def test_a_file_that_runs_code_is_refused(convert, tmp_path, capsys):
    with pytest.raises(UnsafeCheckpointError, match=r"wants to load builtins\.print, and that can run code"):
        convert(meter_weights("vqa"), trap=Trap())
    assert not (tmp_path / "ours.pth").exists()
    assert not capsys.readouterr().out


def test_a_truncated_file_is_refused(config, tmp_path):
    path = write_lightning(tmp_path / "public.ckpt", meter_weights("vqa"))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        conversion.main([str(path), str(tmp_path / "ours.pth"), "--config", config])
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such checkpoint"):
        conversion.main([str(tmp_path / "none.ckpt"), str(tmp_path / "ours.pth")])


def test_a_checkpoint_of_ours_is_not_converted_again(convert, config, tmp_path):
    convert(meter_weights("vqa"))
    with pytest.raises(ValueError, match="is a checkpoint of this package already"):
        conversion.main([str(tmp_path / "ours.pth"), str(tmp_path / "again.pth"), "--config", config])


def test_another_backbone(convert, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion.MODELS, "build", lambda _: torch.nn.Identity())
    with pytest.raises(TypeError, match="the config's backbone is a Identity; public METER files need a METER"):
        convert(meter_weights("vqa"))


def test_without_a_config_a_head_of_a_task_is_needed(tmp_path):
    path = write_lightning(tmp_path / "public.ckpt", meter_weights("pretrain"))
    with pytest.raises(ValueError, match=r"heads of a task in the file: none; expected one\. A pre-trained file needs no"):
        conversion.main([str(path), str(tmp_path / "ours.pth")])
    assert not (tmp_path / "ours.pth").exists()
    both = meter_weights("vqa") | meter_weights("snli")
    with pytest.raises(ValueError, match="heads of a task in the file: vqa_classifier, snli_classifier; expected one"):
        conversion.backbone_config(both)


HEADS = {
    "vqa": {"num_classes": 3129, "images_per_text": 1, "head_name": "vqa_classifier"},
    "nlvr2": {"num_classes": 2, "images_per_text": 2, "head_name": "nlvr2_classifier"},
    "snli": {"num_classes": 3, "images_per_text": 1, "head_name": "snli_classifier"},
    "flickr": {"num_classes": None, "head_name": "rank_output"},
}


@pytest.mark.parametrize("task", HEADS)
def test_without_a_config_the_head_is_the_files(task):
    public = meter_weights(task, grid=24, answers=3129, token_types=3 if task == "nlvr2" else 2)
    assert conversion.backbone_config(public) == {"type": "METER", "vision": {"image_size": 384}, **HEADS[task]}
    if task != "flickr":
        del public[f"{HEADS[task]['head_name']}.0.weight"]
        assert conversion.backbone_config(public)["images_per_text"] == 1


@pytest.mark.parametrize(("task", "side"), [("vqa", 576), ("nlvr2", 288), ("snli", 384), ("flickr", 384)])
def test_without_a_config_the_sizes_are_the_papers(tmp_path, task, side):
    """A full-size checkpoint whose tensors share one number each, so that it takes no space."""
    with torch.device("meta"):
        shapes = METER(vision={"image_size": side}, **HEADS[task]).state_dict()
    unused = [
        name
        for name in meter_shapes(task)
        if name.startswith(("vit_model.ln_final", "text_transformer.pooler", "itm_score", "mlm_score"))
    ]
    weights = {name: torch.zeros(()).expand(value.shape) for name, value in shapes.items()} | dict.fromkeys(
        unused, torch.zeros(1)
    )
    path = write_lightning(tmp_path / "public.ckpt", weights)
    for options, grid in (([], side // 16), (["--image-size", "192"], 192 // 16)):
        found = conversion.main([str(path), str(tmp_path / "ours.pth"), "--force", *options])
        assert found.weights.keys() == shapes.keys()
        assert found.left_out.keys() == set(unused)
        content = load_checkpoint_file(tmp_path / "ours.pth", mmap=True)["state_dict"]
        assert content.pop(f"backbone.{POSITIONS}").shape == (grid**2 + 1, 768)
        assert all(value.shape == shapes[name.removeprefix("backbone.")].shape for name, value in content.items())


def test_the_help_says_what_it_takes(capsys):
    with pytest.raises(SystemExit):
        conversion.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "the paper's sizes, with the head",
        "the images of an answer",
        "side of the images in pixels",
        "overwrite DST",
        "Pre-trained files",
    ):
        assert words in said
