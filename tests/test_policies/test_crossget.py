import math

import pytest
import torch

from smarttrim_mm.policies.crossget import CrossGET
from smarttrim_mm.structures import Evidence, TokenStream
from smarttrim_mm.testing import kept_grids

# Keys of 0, 0, 10, 25, 90 and 110 degrees; token 0 is protected. By likeness alone 1 merges into 2 (10 degrees), then 2,
# with 1, into 3 (15), then 4 into 5 (20).
ANGLES = torch.tensor([0.0, 0, 10, 25, 90, 110]).deg2rad()


@pytest.fixture
def steps(make_model):
    backbone = make_model(backbone={"text_first": True}).backbone
    return {step.name: step for stage in backbone.steps.values() for step in stage}


@pytest.fixture(params=["padded", "packed"])
def streams(request):
    streams = {name: TokenStream.start(torch.randn(2, 6, 64), ids=torch.arange(2)) for name in ("image", "text")}
    return {name: stream if request.param == "padded" else stream.pack() for name, stream in streams.items()}


def pointing(query, degrees):
    """Makes a map give one direction, whatever is mapped: a guide whose normalised channels are 1 and -1 in turn."""
    with torch.no_grad():
        query.weight.zero_()
        query.weight[:2, 0] = torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


def decided(policy, steps, streams, name="image"):
    keys = torch.zeros(2, 6, steps["fusion.0"].layers["image"].attentions[0].head_width)
    keys[..., 0], keys[..., 1] = ANGLES.cos(), ANGLES.sin()
    views = policy.attentions["fusion.0"].values()
    evidence = {view.name: Evidence(keys=streams[name].layout.from_grid(keys)) for view in views}
    merge = policy.after_attention(steps["fusion.0"], streams, evidence, {}).merge[name]
    layout = streams[name].layout
    return layout.to_grid(merge.into, -1)[0].tolist(), layout.to_grid(merge.weight, -1.0)[0]


def test_the_guide_of_the_other_stream_says_what_is_important(steps, streams):
    guide = torch.tensor([1.0, -1.0]).repeat(32)
    text = streams["text"]
    streams["text"] = text.map(lambda x: guide.expand_as(x))
    policy = CrossGET(steps=list(steps.values()), merge_ratio=0.2, streams=["image"])  # 1.2 of six: one
    query = policy.queries["fusion/image/text"]
    pointing(query, 0.0)
    # cosines with 0 degrees: 1, .985, .906, 0, -.342. With those behind them: 1 and 2 (.985 - 1), 2 and 3 (.966 - .985), 3 and
    # 4 (.423 - .906), 4 and 5 (.940 - 0)
    into, weight = decided(policy, steps, streams)
    assert into == [0, 1, 2, 3, 5, 5]
    torch.testing.assert_close(weight, ANGLES.cos().exp())  # the soft-max, but for what a mean divides by
    pointing(query, 110.0)
    # -.342, -.174, .087, .940, 1: 1 and 2 (.985 + .342), before 2 and 3 (.966 + .174)
    into, weight = decided(policy, steps, streams)
    assert into == [0, 2, 2, 3, 4, 5]
    torch.testing.assert_close(weight, (ANGLES - math.radians(110)).cos().exp())


def test_only_a_cosine_counts(steps, streams):
    policy = CrossGET(steps=list(steps.values()), merge_ratio=0.5, streams=["image"])
    before = decided(policy, steps, streams)
    with torch.no_grad():
        policy.queries["fusion/image/text"].weight.mul_(7.0)
    streams["text"] = streams["text"].map(lambda x: 3 * x + 2)
    into, weight = decided(policy, steps, streams)
    assert into == before[0]
    torch.testing.assert_close(weight, before[1], atol=1e-4, rtol=1e-4)


def test_who_guides_whom(steps):
    policy = CrossGET(steps=list(steps.values()))
    sizes = {key: (query.in_features, query.out_features) for key, query in policy.queries.items()}
    assert sizes == {
        "text/text/text": (32, 8), "image/image/text": (32, 12), "fusion/text/image": (64, 16), "fusion/image/text": (64, 16),
    }  # fmt: skip
    assert policy.reads(steps["image.0"]) == {"text"} and not policy.reads(steps["text.0"])
    counts = {"image": torch.tensor([17.0]), "text": torch.tensor([9.0])}
    assert policy.multiply_adds(steps["image.0"], counts).tolist() == [17 * 17 * 12 + (32 + 17) * 12]
    assert policy.multiply_adds(steps["fusion.0"], counts).tolist() == [(17 * 17 + 9 * 9 + 2 * 64 + 17 + 9) * 16]
    alone = CrossGET(steps=list(steps.values()), streams=["image"], layers={"image": [1], "fusion": []})
    assert set(alone.queries) == {"image/image/text"} and not alone.reads(steps["image.0"]) and alone.reads(steps["image.1"])


def test_without_another_modality_the_own_guide_is_asked(make_model):
    policy = make_model("CrossGET").policy
    assert {key: query.in_features for key, query in policy.queries.items() if key.startswith("image/")} == {
        "image/image/image": 48
    }


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_as_many_merge_in_every_layer_but_one_stays(make_model, make_inputs, kind):
    model = make_model({"type": "CrossGET", "merge_ratio": 0.3})
    with torch.no_grad():
        grids = kept_grids(model.trace(make_inputs(model), kind)[1])
    # of 17 image tokens 5.1; of 9 4 2 7 9 3 words 2.7 1.2 .6 2.1 2.7 .9, of which 7 2 0 5 7 1 are not protected
    layers = ("image.0", "image.1", "image.2", "fusion.0", "fusion.1")
    assert [grids[f"{name}/image after"].sum(1).tolist() for name in layers] == [[n] * 6 for n in (12, 7, 2, 2, 2)]
    texts = [grids[f"{name}/text after"].sum(1).tolist() for name in ("text.0", "text.1", "fusion.0")]
    assert texts == [[7, 3, 2, 5, 7, 3], [5, 3, 2, 3, 5, 3], [3, 3, 2, 3, 3, 3]]


def test_nothing_merges_before_the_curriculum(make_model, make_inputs):
    model = make_model("CrossGET")
    model.set_curriculum(0.0)
    inputs = make_inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(model.trace(inputs)[0], model.host_forward(inputs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("merge_ratio", [-0.1, 0.6, float("nan")])
def test_an_impossible_ratio(steps, merge_ratio):
    with pytest.raises(ValueError, match=rf"merge_ratio is {merge_ratio}; expected a share in \[0, 0.5\]"):
        CrossGET(steps=list(steps.values()), merge_ratio=merge_ratio)
