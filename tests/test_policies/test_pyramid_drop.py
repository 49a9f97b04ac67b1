import pytest
import torch

from smarttrim_mm.policies.base import UnsupportedBackboneError
from smarttrim_mm.policies.pyramid_drop import PyramidDrop, stage_ends
from smarttrim_mm.structures import Evidence, TokenStream

ROW = torch.tensor([[0.2, 0.1, 0.3, 0.1, 0.3], [0.6, 0.1, 0.1, 0.1, 0.1]])


@pytest.fixture
def steps(make_model):
    return {step.name: step for stage in make_model().backbone.steps.values() for step in stage}


def test_stages_of_equal_depth():
    layers = [str(number) for number in range(1, 33)]
    assert stage_ends(layers, 4) == ["8", "16", "24"]  # the paper's, of 32
    assert stage_ends(layers[:5], 4) == ["1", "2", "3"]  # 5 / 4, 10 / 4 and 15 / 4, rounded down
    assert stage_ends(layers[:2], 4) == ["1"]  # two stages
    assert stage_ends(layers[:1], 4) == []


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "view"), [("image.0", "image.self"), ("fusion.0", "text.cross")])
def test_the_text_ranks_where_it_reads_the_image(steps, name, view, packed):
    layers = {"image": [0], "fusion": [0]}
    policy = PyramidDrop(steps=list(steps.values()), layers=layers)
    assert policy.looks(steps[name]) == {view: {"guide_row"}}
    stream = TokenStream.start(torch.zeros(2, 5, 8), ids=torch.tensor([4, 7]))
    evidence = {view: Evidence(guide_row=ROW.flatten() if packed else ROW)}
    decision = policy.after_attention(steps[name], {"image": stream.pack() if packed else stream}, evidence, {})
    # two of four patches stay: those with 0.3, and of equal ones the first
    expected = [[True, False, True, False, True], [True, True, True, False, False]]
    assert decision.keep["image"].reshape(2, 5).tolist() == expected and not decision.merge


def test_the_image_shrinks_from_stage_to_stage(make_model, make_inputs):
    """Three image layers and two fusion layers: ends are the layers 1, 2 and 3 of five."""
    model = make_model("PyramidDrop")
    with torch.no_grad():
        _, record = model.trace(make_inputs(model))
    ran = {entry.step.name: entry.tokens["image"].counts()[0].item() for entry in record.steps if "image" in entry.tokens}
    assert ran == {"image.0": 17, "image.1": 9, "image.2": 5, "fusion.0": 3, "fusion.1": 3}
    assert list(make_model({"type": "PyramidDrop", "layers": {"fusion": [1]}}).policy.attentions) == ["fusion.1"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"keep_ratio": 1.01}, r"keep_ratio is 1.01; expected a share in \[0.001, 1\]"),
        ({"parts": 1}, "parts is 1; expected at least 2 stages"),
        ({"layers": {"image": [4]}}, r"layers names layers \[4\] of stage 'image'"),
    ],
)
def test_bad_settings_are_refused(steps, config, message):
    with pytest.raises(ValueError, match=message):
        PyramidDrop(steps=list(steps.values()), **config)


def test_a_single_layer_has_no_stages(steps):
    with pytest.raises(UnsupportedBackboneError, match=r"a single layer reads the streams \['image'\]"):
        PyramidDrop(steps=[steps["image.0"]])
