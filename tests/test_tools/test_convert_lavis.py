"""``tools/convert_lavis.py`` in this process."""

import re
from pathlib import Path

import pytest
import torch

from smarttrim_mm.backbones.lavis import LavisBackbone
from smarttrim_mm.backbones.meter import METER
from smarttrim_mm.engine import lavis_conversion
from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import excite, random_inputs
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file

BACKBONE = LavisBackbone.small_configs()["blip_nlvr shared images"]


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "small_lavis.py"
    path.write_text(f"model = dict(type='TrimmedVLM', backbone={BACKBONE!r}, policy=dict(type='SmartTrim'))\n")
    return str(path)


@pytest.fixture
def public(tmp_path):
    """A public checkpoint, and the model it was saved from."""
    backbone = MODELS.build(BACKBONE).eval()
    excite(backbone)
    weights = {key: value for key, value in backbone.host.state_dict().items() if not key.endswith("position_ids")}
    torch.save({"model": weights}, tmp_path / "public.pth")
    return backbone, str(tmp_path / "public.pth")


def test_there_and_back(config, public, tmp_path, capsys):
    backbone, source = public
    ours, theirs = str(tmp_path / "ours.pth"), str(tmp_path / "theirs.pth")
    lavis_conversion.main(["import", config, source, ours])
    assert re.search(r"used +18  visual_encoder\n", capsys.readouterr().out)
    model = build_model(read_config(config, {"model.policy.type": "Dense"}), ours)
    inputs = random_inputs(model.backbone.input_format, [5, 3])
    with torch.no_grad():
        torch.testing.assert_close(model.trace(inputs, policy=model.dense)[0], backbone.host_forward(inputs))
    assert load_checkpoint_file(ours)["meta"] == {"converted_from": "public.pth"}
    lavis_conversion.main(["export", ours, theirs])
    weights = load_checkpoint_file(theirs)["model"]
    expected = backbone.host.state_dict()
    assert weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in expected)
    assert capsys.readouterr().out == f"{len(expected)} tensors written to {theirs}\n"


def test_a_captioner_there_and_back(tmp_path):
    case = LavisBackbone.small_configs()["blip_caption shared images"]
    config, source, ours, theirs = (str(tmp_path / name) for name in ("caption.py", "public.pth", "ours.pth", "theirs.pth"))
    Path(config).write_text(f"model = dict(type='TrimmedVLM', backbone={case!r}, policy=dict(type='Dense'))\n")
    backbone = MODELS.build(case).eval()
    excite(backbone)
    expected = backbone.host.state_dict()
    torch.save({"model": expected}, source)
    lavis_conversion.main(["import", config, source, ours])
    model = build_model(read_config(config), ours)
    inputs = random_inputs(model.backbone.input_format, [5, 3])
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), backbone.host_forward(inputs))
    lavis_conversion.main(["export", ours, theirs])
    weights = load_checkpoint_file(theirs)["model"]
    assert weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in expected)


def test_the_trimmers_stay_behind(config, tmp_path):
    model = build_model(read_config(config))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "ours.pth")
    lavis_conversion.main(["export", str(tmp_path / "ours.pth"), str(tmp_path / "theirs.pth")])
    assert load_checkpoint_file(tmp_path / "theirs.pth")["model"].keys() == model.backbone.host.state_dict().keys()


def test_a_file_without_a_head_is_no_model_to_test(config, public, tmp_path):
    _, source = public
    weights = load_checkpoint_file(source)["model"]
    torch.save({"model": {key: value for key, value in weights.items() if not key.startswith("cls_head")}}, source)
    with pytest.raises(ValueError, match=r"nothing for 4 weights .*cls_head.*model.backbone.checkpoint="):
        lavis_conversion.main(["import", config, source, str(tmp_path / "ours.pth")])


def test_errors(config, public, tmp_path):
    _, source = public
    with pytest.raises(FileExistsError, match=r"small_lavis.py exists; name another file, or add --force"):
        lavis_conversion.main(["export", source, config])
    with pytest.raises(ValueError, match=r"no key begins with 'backbone.host.'"):
        lavis_conversion.main(["export", source, str(tmp_path / "theirs.pth")])
    (tmp_path / "meter.py").write_text(
        f"model = dict(type='TrimmedVLM', backbone={METER.small_configs()['shared images']!r}, policy=dict(type='Dense'))\n"
    )
    with pytest.raises(TypeError, match="backbone is a METER; expected a LavisBackbone"):
        lavis_conversion.main(["import", str(tmp_path / "meter.py"), source, str(tmp_path / "ours.pth")])
