import pytest
import torch

from smarttrim_mm.policies.tome import ToMe
from smarttrim_mm.structures import Evidence, TokenStream
from smarttrim_mm.testing import kept_grids

# Token 0 is protected; 1, 3, 5 are targets, and 2, 4, 6 sources: 4 is most like 3 (cosine .9994), 2 like 1 (.9988),
# 6 like 1 (.743). Of the second instance 3 and 5 are padding or gone: 1, 4 are targets, and 2, 6 sources, 2 like 1 (.9988),
# 6 like 1 (.743; .698 to 4).
KEYS = torch.tensor([[2.0, 0.1], [1, 0], [2, 0.1], [0, 1], [0.1, 3], [-1, 0], [1, 0.9]]).expand(2, 7, 2)
KEEP = torch.tensor([[True] * 7, [True, True, True, False, True, False, True]])


@pytest.fixture
def steps(make_model):
    return [step for stage in make_model().backbone.steps.values() for step in stage]


@pytest.fixture(params=["padded", "packed"])
def stream(request):
    stream = TokenStream.start(torch.randn(2, 7, 48), ids=torch.arange(2)).select(KEEP)
    return stream if request.param == "padded" else stream.pack()


def decided(policy, steps, name, stream):
    """The decision on an image, and where its tokens merge, over the original positions; -1: gone before."""
    step = next(step for step in steps if step.name == name)
    evidence = {"image.self": Evidence(keys=stream.layout.from_grid(KEYS))}
    merge = policy.after_attention(step, {"image": stream}, evidence, {}).merge["image"]
    return merge, stream.layout.to_grid(merge.into, -1).tolist()


def test_the_most_similar_tokens_merge(steps, stream):
    merge, into = decided(ToMe(steps=steps, merge_ratio=0.4), steps, "image.0", stream)
    # .4 of seven tokens, those that the second instance lost included, are 2.8
    assert into == [[0, 1, 1, 3, 3, 5, 6], [0, 1, 1, -1, 4, -1, 1]]
    assert merge.sized and (merge.weight == 1).all()
    assert decided(ToMe(steps=steps, merge_ratio=0.2), steps, "image.0", stream)[1][1] == [0, 1, 1, -1, 4, -1, 6]
    assert decided(ToMe(steps=steps), steps, "image.0", stream)[1][0] == list(range(7))


def test_whole_tokens_add_up_over_the_layers_of_a_stream(steps, stream):
    policy = ToMe(steps=steps, merge_ratio=0.2, streams=["image", "text"])
    # 1.4 a layer: 1, 1, 2 in the image encoder; the text encoder's layers, in between, do not count
    merged = [sum(i != place for i, place in enumerate(decided(policy, steps, f"image.{i}", stream)[1][0])) for i in range(3)]
    assert merged == [1, 1, 2]


def test_what_stands_for_several_weighs_as_many(steps, stream):
    sizes = torch.tensor([[1.0, 2, 1, 1, 3, 1, 1], [1, 1, 2, 1, 1, 1, 1]])
    layout = stream.layout
    grown = TokenStream(stream.x, type(layout)(**{**vars(layout), "sizes": layout.from_grid(sizes)}))
    merge, _ = decided(ToMe(steps=steps, merge_ratio=0.2), steps, "image.0", grown)
    assert torch.equal(merge.weight, grown.layout.sizes) and merge.sized
    merge, _ = decided(ToMe(steps=steps, merge_ratio=0.2, proportional=False), steps, "image.0", stream)
    assert not merge.sized


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_as_many_merge_in_every_layer_as_half_of_the_rest_allows(make_model, make_inputs, kind):
    model = make_model({"type": "ToMe", "merge_ratio": 0.2})
    with torch.no_grad():
        grids = kept_grids(model.trace(make_inputs(model), kind)[1])
    # of 17 with the class token: 3.4, 6.8, 10.2, 13.6 and 17 in all, rounded down; the last layer has three that may merge
    counts = [
        grids[f"{name}/image after"].sum(1).tolist() for name in ("image.0", "image.1", "image.2", "fusion.0", "fusion.1")
    ]
    assert counts == [[14] * 6, [11] * 6, [7] * 6, [4] * 6, [3] * 6]
    assert torch.equal(grids["fusion.1/text"], grids["text.0/text"])


def test_nothing_merges_by_default_or_before_the_curriculum(make_model, make_inputs):
    for config, progress in (({"type": "ToMe"}, 1.0), ({"type": "ToMe", "merge_ratio": 0.4}, 0.0)):
        model = make_model(config)
        model.set_curriculum(progress)
        inputs = make_inputs(model)
        with torch.no_grad():
            logits, record = model.trace(inputs)
            torch.testing.assert_close(logits, model.host_forward(inputs), atol=1e-4, rtol=0)
        kept = kept_grids(record)
        assert all(kept[name].equal(kept[name.removesuffix(" after")]) for name in kept if name.endswith("after"))


def test_streams_and_layers(make_model, make_inputs):
    model = make_model({"type": "ToMe", "merge_ratio": 0.2, "streams": ["text"], "layers": {"text": [1], "fusion": []}})
    assert model.policy.get_knob() == pytest.approx(0.2)
    with torch.no_grad():
        grids = kept_grids(model.trace(make_inputs(model))[1])
    assert {name for name in grids if name.endswith("after")} == {"text.1/text after"}
    # .2 of 9 4 2 7 9 3 tokens are 1.8, .8, .4, 1.4, 1.8, .6
    assert grids["text.1/text after"].sum(1).tolist() == [8, 4, 2, 6, 8, 3]


@pytest.mark.parametrize("merge_ratio", [-0.1, 0.6, float("nan")])
def test_an_impossible_ratio(make_model, merge_ratio):
    with pytest.raises(ValueError, match=rf"merge_ratio is {merge_ratio}; expected a share in \[0, 0.5\]"):
        make_model({"type": "ToMe", "merge_ratio": merge_ratio})


def test_unknown_or_impossible_places(make_model):
    with pytest.raises(ValueError, match=r"streams holds \['audio'\]"):
        make_model({"type": "ToMe", "streams": ["audio"]})
    with pytest.raises(ValueError, match=r"layers names layers \[9\] of stage 'fusion'"):
        make_model({"type": "ToMe", "layers": {"fusion": [9]}})
    with pytest.raises(
        ValueError, match=r"streams is \['image'\] and layers {'image': \[\], 'fusion': \[\]}: no such stream has"
    ):
        make_model({"type": "ToMe", "layers": {"image": [], "fusion": []}})
