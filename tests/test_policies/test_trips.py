import math

import pytest
import torch

from smarttrim_mm.policies.base import UnsupportedBackboneError
from smarttrim_mm.structures import Evidence, TokenStream

# keys of two images: a class token and four patches, in the first two of the twelve channels of a head
KEYS = torch.zeros(2, 5, 12)
KEYS[0, :, 0] = torch.tensor([9.0, 0.0, 2.0, 1.0, 3.0])
KEYS[1, :, 1] = torch.tensor([9.0, 4.0, 1.0, 2.0, 2.0])


@pytest.fixture
def model_of(make_model):
    """A model whose text guides the image, whose widths are 48 and, unless they are said to be equal, 32."""

    def make(equal=False, **policy):
        backbone = {"text_first": True}
        if equal:
            text = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
            backbone["text"] = {**text, "vocab_size": 40, "max_position_embeddings": 24}
        return make_model({"type": "TRIPS", **policy}, backbone)

    return make


def first_step(model):
    return next(step for step in model.backbone.steps["image"] if model.policy.reduces(step))


def decide(model, guide, packed=False):
    stream = TokenStream.start(torch.zeros(2, 5, 48), ids=torch.tensor([4, 7]))
    step = first_step(model)
    keys = KEYS.flatten(0, 1) if packed else KEYS
    with torch.no_grad():
        return model.policy.after_attention(
            step, {"image": stream.pack() if packed else stream}, {"image.self": Evidence(keys=keys)}, {"text": guide}
        )


@torch.no_grad()
def ask_by(model, channel, value):
    """Makes the query projection of every head answer ``value`` times the text's channel, in its channel of that number."""
    view = first_step(model).layers["image"].attentions[0]
    weight, bias = view.q.parameters()
    weight.zero_()
    bias.zero_()
    for head in range(4):
        weight[12 * head + channel, channel] = value


@pytest.mark.parametrize("packed", [False, True])
def test_the_text_chooses_by_the_images_own_query_projection(model_of, packed):
    model = model_of(equal=True, keep_ratio=0.5)
    assert not list(model.policy.parameters())
    root = math.sqrt(12)
    ask_by(model, 0, root)
    guide = torch.zeros(2, 48)
    guide[:, 0] = 1.0
    # scores are the keys' first channels: of image 0 the best two are 4 (3) and 2 (2), and 3 (1) takes up 1 (0); of image 1 all
    # are 0, so that 1 and 2 come first and 3 takes up 4. The class token, whose key is largest, is not asked
    merge = decide(model, guide, packed).merge["image"]
    assert merge.into.reshape(2, 5).tolist() == [[0, 3, 2, 3, 4], [0, 1, 2, 3, 3]]
    total = 1 + math.e + math.e**2 + math.e**3
    expected = [[1 / total, math.e**2 / total, math.e / total, math.e**3 / total], [0.25] * 4]
    torch.testing.assert_close(merge.weight.reshape(2, 5)[:, 1:], torch.tensor(expected))


def test_another_text_chooses_otherwise(model_of):
    model = model_of(equal=True, keep_ratio=0.5)
    ask_by(model, 1, 1.0)
    guide = torch.zeros(2, 48)
    guide[:, 1] = torch.tensor([1.0, -1.0])
    # image 1 by its second channel, the other way round: 2 (1) is the best, then 3 and 4 (2 each), 1 (4) the worst
    assert decide(model, guide).merge["image"].into[1].tolist() == [0, 4, 2, 3, 4]


def test_a_text_of_another_width_is_projected(model_of):
    model = model_of(keep_ratio=0.5)
    assert {name: tuple(p.shape) for name, p in model.policy.named_parameters()} == {
        "projections.image_1.weight": (48, 32),
        "projections.image_2.weight": (48, 32),
    }
    ask_by(model, 0, 1.0)
    with torch.no_grad():
        weight = model.policy.projections["image_1"].weight
        weight.zero_()
        weight[0, 5] = -1.0
    guide = torch.zeros(2, 32)
    guide[:, 5] = 1.0
    # minus the first channel: of image 0 the best are 1 (0) and 3 (-1), and 2 (-2) takes up 4 (-3)
    assert decide(model, guide).merge["image"].into[0].tolist() == [0, 1, 2, 3, 2]


def test_layers_are_a_third_apart(make_model):
    backbone = {"text_first": True, "vision": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 12, "heads": 4}}
    assert list(make_model({"type": "TRIPS"}, backbone).policy.attentions) == ["image.4", "image.8"]  # 5 and 9, counted from 1


def test_the_text_is_wanted_where_it_chooses_and_nowhere_else(model_of):
    model = model_of(layers={"image": [1]})
    assert [sorted(model.policy.reads(step)) for step in model.backbone.steps["image"]] == [[], ["text"], []]


def test_without_a_text_it_is_refused(make_model):
    with pytest.raises(UnsupportedBackboneError, match=r"image\.1: no text guides .* text_first=True .* EViT"):
        make_model("TRIPS")


def test_without_a_projection_widths_must_agree(model_of):
    with pytest.raises(UnsupportedBackboneError, match=r"has width 32, and .* width 48, which needs projection=True"):
        model_of(projection=False)
    assert not list(model_of(equal=True, projection=False).policy.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"keep_ratio": 2}, r"keep_ratio is 2; expected a share in \[0.001, 1\]"),
        ({"layers": {"image": [3]}}, r"layers names layers \[3\] of stage 'image'"),
        ({"layers": {"fusion": [0]}}, "fusion.0: no text guides"),
    ],
)
def test_bad_settings_are_refused(model_of, config, message):
    with pytest.raises(ValueError, match=message):
        model_of(**config)


def test_each_question_has_an_image_of_its_own(model_of, make_inputs):
    """The first two ask the same about one image, the next three differ about another."""
    model = model_of(keep_ratio=0.3)
    inputs = make_inputs(model, (4, 6, 4, 5, 3, 3), (0, 0, 1, 1, 1, 2))
    inputs.input_ids[1] = inputs.input_ids[0]
    inputs.text_mask[1], inputs.special_mask[1] = inputs.text_mask[0], inputs.special_mask[0]
    with torch.no_grad():
        _, record = model.trace(inputs)
    [first] = [entry for entry in record.steps if entry.step.name == "image.1"]
    assert first.after["image"].counts().tolist() == [7.0] * 6  # of 16 patches 5, one that is fused, and the class token
    weights = first.merged["image"].weight
    torch.testing.assert_close(weights[1], weights[0])
    for one, other in ((2, 3), (3, 4), (0, 2)):
        assert (weights[one] - weights[other]).abs().max() > 1e-4
