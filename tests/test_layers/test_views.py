import pytest
import torch
from torch import nn

from smarttrim_mm.layers.views import LayerStep, Projection, modality


def test_projection_of_fused_rows():
    module = nn.Linear(3, 6)
    weight, bias = Projection(module, slice(2, 4)).parameters()
    assert torch.equal(weight, module.weight[2:4]) and torch.equal(bias, module.bias[2:4])
    assert Projection(module, slice(2, 4)).inputs == 3
    assert Projection(module).parameters() == (module.weight, module.bias)


def test_projection_without_bias_or_under_other_names():
    assert Projection(nn.Linear(3, 6, bias=False), slice(2, 4)).parameters()[1] is None
    module = nn.MultiheadAttention(4, 2)
    weight, bias = Projection(module, slice(0, 4), "in_proj_weight", "in_proj_bias").parameters()
    assert torch.equal(weight, module.in_proj_weight[:4]) and torch.equal(bias, module.in_proj_bias[:4])


def test_projection_follows_its_module():
    module = nn.Linear(3, 6)
    projection = Projection(module)
    module.weight = nn.Parameter(torch.zeros(6, 3))
    assert projection.weight is module.weight


def test_names_and_widths_of_a_step(encoder_layer):
    _, step = encoder_layer(True)
    assert (step.stage, step.index) == ("text", 0)
    assert step.widths() == {"words": 16}
    other = LayerStep("vision.tower.12", step.layers, {"question": 5})
    assert (other.stage, other.index) == ("vision.tower", 12)
    assert other.widths() == {"words": 16, "question": 5}
    assert step.layers["words"].attentions[0].head_width == 4


def test_memories_can_be_cut_and_guide(decoder_layer):
    _, step = decoder_layer(True)
    assert step.streams() == {"words": 16, "image": 16}
    other = LayerStep("text.0", step.layers, {"sound": 5}, step.memories)
    assert other.streams() == step.streams() and other.widths() == {"words": 16, "image": 16, "sound": 5}


def test_a_stream_that_is_read_must_be_there(decoder_layer):
    _, step = decoder_layer(True)
    with pytest.raises(ValueError, match=r"text.3: words.cross reads 'image'.*memories=\{'image': 16\}"):
        LayerStep("text.3", step.layers)


def test_attentions_by_sub_layer(decoder_layer, twin_layer):
    words = decoder_layer(True)[1].layers["words"]
    assert words.sublayers() == [((words.attentions[0],), None), ((words.attentions[1],), None)]
    twins = twin_layer("merge")[2].layers["words"]
    assert twins.sublayers() == [(twins.attentions, twins.joins[0])]


def test_modality():
    assert [modality(name) for name in ("image", "image0", "image12", "text")] == ["image", "image", "image", "text"]
