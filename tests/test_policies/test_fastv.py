import pytest
import torch

from smarttrim_mm.policies.base import UnsupportedBackboneError
from smarttrim_mm.policies.fastv import FastV
from smarttrim_mm.registry import MODELS
from smarttrim_mm.structures import Evidence, TokenStream
from smarttrim_mm.testing import backbone_cases, random_inputs

BY_IMAGE = torch.tensor([[0.4, 0.1, 0.2, 0.1, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]])
BY_TEXT = torch.tensor([[0.1, 0.5, 0.1, 0.2, 0.1], [0.1, 0.1, 0.2, 0.3, 0.3]])


@pytest.fixture
def steps(make_model):
    return {step.name: step for stage in make_model().backbone.steps.values() for step in stage}


def streams(packed):
    """Two images of a class token and four patches, and texts of three and of two words."""
    words = torch.tensor([[True, True, True], [True, True, False]])
    both = {
        "image": TokenStream.start(torch.zeros(2, 5, 8), ids=torch.tensor([4, 7])),
        "text": TokenStream.start(torch.zeros(2, 3, 8), ids=torch.tensor([4, 7]), valid=words),
    }
    return {name: stream.pack() for name, stream in both.items()} if packed else both


def seen(values, packed):
    return Evidence(received=values.flatten() if packed else values)


@pytest.mark.parametrize("packed", [False, True])
def test_what_receives_least_is_dropped(steps, packed):
    policy = FastV(steps=list(steps.values()))
    decision = policy.after_attention(steps["image.1"], streams(packed), {"image.self": seen(BY_IMAGE, packed)}, {})
    # two of four patches stay: of image 0 those with 0.2, of image 1, where all are alike, the first ones
    expected = [[True, False, True, False, True], [True, True, True, False, False]]
    assert decision.keep["image"].reshape(2, 5).tolist() == expected and not decision.merge


@pytest.mark.parametrize("packed", [False, True])
def test_in_a_fusion_layer_words_and_patches_ask(steps, packed):
    policy = FastV(steps=list(steps.values()), layers={"image": [], "fusion": [0]})
    step = steps["fusion.0"]
    assert policy.looks(step) == {"image.self": {"received"}, "text.cross": {"received"}}
    evidence = {"image.self": seen(BY_IMAGE, packed), "text.cross": seen(BY_TEXT, packed)}
    decision = policy.after_attention(step, streams(packed), evidence, {})
    # five tokens of the image ask, and three words: 0.1 * 5 + 0.5 * 3 = 2, then 0.2 * 5 + 0.1 * 3 = 1.3, 1.1 and 1.3. Of image
    # 1 five and two: 1.2, 1.4, 1.6, 1.6
    expected = [[True, True, True, False, False], [True, False, False, True, True]]
    assert decision.keep["image"].reshape(2, 5).tolist() == expected


def test_it_cuts_once_in_the_second_layer(make_model, make_inputs):
    model = make_model("FastV")
    inputs = make_inputs(model)
    with torch.no_grad():
        _, record = model.trace(inputs)
    assert [entry.step.name for entry in record.steps if entry.after] == ["image.1"]
    [cut] = [entry for entry in record.steps if entry.after]
    assert cut.tokens["image"].counts().tolist() == [17.0] * 3 and cut.after["image"].counts().tolist() == [9.0] * 3
    model.set_curriculum(0.0)
    with torch.no_grad():
        _, record = model.trace(inputs)
    assert all(entry.after["image"].counts().tolist() == [17.0] * 3 for entry in record.steps if entry.after)


@pytest.mark.parametrize("name", ["blip_vqa text first", "blip2_image_text_matching text first"])
def test_a_memory_is_cut_as_the_text_reads_it(name):
    """BLIP's text as a whole, of BLIP-2's the queries alone."""
    policy = {"type": "FastV", "layers": {"image": [], "fusion": [0]}}
    model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone_cases()[f"LavisBackbone/{name}"], "policy": policy}).eval()
    inputs = random_inputs(model.backbone.input_format, [5, 8])
    with torch.no_grad():
        (packed, record), (masked, _) = (model.trace(inputs, kind) for kind in ("packed", "masked"))
    torch.testing.assert_close(packed, masked, atol=1e-4, rtol=0)
    [cut] = [entry for entry in record.steps if entry.after]
    before, after = cut.tokens["image"].counts(), cut.after["image"].counts()
    assert cut.step.name == "fusion.0" and torch.equal(after, torch.ceil((before - 1) / 2) + 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"keep_ratio": -0.5}, r"keep_ratio is -0.5; expected a share in \[0.001, 1\]"),
        ({"streams": ["sound"]}, r"streams holds \['sound'\]"),
        ({"layers": {"fusion": [5]}}, r"layers names layers \[5\] of stage 'fusion'"),
    ],
)
def test_bad_settings_are_refused(steps, config, message):
    with pytest.raises(ValueError, match=message):
        FastV(steps=list(steps.values()), **config)


def test_layers_that_read_no_image_are_refused(steps):
    with pytest.raises(UnsupportedBackboneError, match=r"no attention of these layers of this backbone reads such a stream"):
        FastV(steps=list(steps.values()), layers={"image": [], "text": [0]})
