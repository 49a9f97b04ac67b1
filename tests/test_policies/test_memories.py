"""Streams without a layer of their own are trimmed like any other, under the name of their modality."""

import pytest
import torch

from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.policies.base import Policy, check_streams, is_chosen
from smarttrim_mm.policies.random import Random
from smarttrim_mm.policies.smarttrim import SmartTrim
from smarttrim_mm.structures import TokenStream

IDS = torch.arange(3)


@pytest.fixture
def steps(make_model):
    """An image encoder that a text guides, and a text whose layers read two images, the first of them alone at first."""
    backbone = make_model().backbone
    (image, *_), (text, *_) = ([step.layers[name] for step in backbone.steps[name]] for name in ("image", "text"))
    return [
        LayerStep("image.0", {"image": image}, {"text": 32}),
        LayerStep("fusion.0", {"text": text}, memories={"image0": 48}),
        LayerStep("fusion.1", {"text": text}, memories={"image0": 48, "image1": 48}),
    ]


@pytest.fixture
def streams():
    widths = {"text": 32, "image0": 48, "image1": 48}
    return {name: TokenStream.start(torch.randn(3, 8, width), ids=IDS) for name, width in widths.items()}


def test_a_config_names_modalities_or_single_streams(steps):
    check_streams(steps, ["image", "image1", "text"])
    with pytest.raises(
        ValueError, match=r"streams holds \['image2'\]; this backbone has \['image', 'image0', 'image1', 'text'\]"
    ):
        check_streams(steps, ["image2"])
    assert is_chosen("image0", ["image"]) and is_chosen("image0", ["image0"]) and not is_chosen("image0", ["image1", "text"])


def test_random_goes_on_where_the_image_was(steps, streams):
    policy = Random(steps=steps, keep_ratio=0.5, streams=["image"])
    assert [policy.trims(step)[0] for step in steps] == [{"image"}, {"image0"}, {"image0", "image1"}]
    execution = Execution(policy, sample_ids=IDS, kind="masked")
    execution.run(steps[1:], streams)
    counts = [{name: int(x.counts()[0]) for name, x in entry.tokens.items()} for entry in execution.record.steps]
    # image.0 would have left 4 of 8; image0 is cut for the second and third time, image1 for the second
    assert counts == [{"text": 8, "image0": 2}, {"text": 8, "image0": 1, "image1": 2}]
    assert not policy.reads(steps[0])


def test_smarttrim_scores_memories_by_all_that_the_step_sees(steps, streams):
    policy = SmartTrim(steps=steps, stable_init=False)
    assert set(policy.token_trimmers) == {
        "image_0/image", "fusion_0/text", "fusion_0/image0", "fusion_1/text", "fusion_1/image0", "fusion_1/image1",
    }  # fmt: skip
    assert set(policy.token_trimmers["fusion_1/image1"].query) == {"text", "image0", "image1"}
    assert policy.trims(steps[1])[0] == {"text", "image0"}
    decision = policy.before_layer(steps[2], streams, {})
    assert {name: keep.shape for name, keep in decision.keep.items()} == dict.fromkeys(streams, (3, 8))
    assert set(SmartTrim(steps=steps, streams=["image1"]).token_trimmers) == {"fusion_1/image1"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"text"}),
        ({"token_trimmer": {"type": "TokenTrimmer", "scores": ["local", "self"]}}, set()),
        ({"token_trimmer": None}, set()),
        ({"token_layers": {"image": []}}, set()),
    ],
    ids=["cross scores", "own scores", "heads only", "not in the image encoder"],
)
def test_smarttrim_reads_the_guides_that_its_trimmers_read(steps, settings, expected):
    policy = SmartTrim(steps=steps, **settings)
    assert policy.reads(steps[0]) == expected
    assert policy.reads(steps[1]) == set()


def test_a_policy_that_cuts_reads_unless_it_says_otherwise(steps):
    class Cuts(Policy):
        def trims(self, step):
            return frozenset({"image"}), frozenset()

    assert Cuts(steps=steps).reads(steps[0]) == {"text"}
    assert Policy(steps=steps).reads(steps[0]) == set()
