import pytest
import torch

from smarttrim_mm.policies.base import UnsupportedBackboneError
from smarttrim_mm.policies.pumer import PuMer
from smarttrim_mm.registry import MODELS
from smarttrim_mm.structures import Evidence, TokenStream
from smarttrim_mm.testing import backbone_cases, kept_grids, random_inputs

# Six tokens may go or merge. 3 is the least read, then 5; of the others, dealt in turn, 1, 4, 6 are targets and 2, 5 sources,
# or without 5 as well, 1, 4 and 2, 6. 2 is most like 1 (cosine .9988), 6 like 1 (.743; .698 to 4), 5 like 4 (-.033).
KEYS = torch.tensor([[2.0, 0.1], [1, 0], [2, 0.1], [0, 1], [0.1, 3], [-1, 0], [1, 0.9]]).expand(2, 7, 2)
RECEIVED = torch.tensor([0.01, 0.2, 0.19, 0.05, 0.25, 0.1, 0.2]).expand(2, 7)


@pytest.fixture
def steps(make_model):
    return [step for stage in make_model().backbone.steps.values() for step in stage]


@pytest.fixture(params=["padded", "packed"])
def streams(request):
    streams = {name: TokenStream.start(torch.randn(2, 7, 64), ids=torch.arange(2)) for name in ("image", "text")}
    return {name: stream if request.param == "padded" else stream.pack() for name, stream in streams.items()}


def decided(steps, streams, **config):
    policy = PuMer(steps=steps, **config)
    step = next(step for step in steps if step.name == "fusion.0")
    image, text = streams["image"].layout, streams["text"].layout
    seen = {
        "image.self": Evidence(keys=image.from_grid(KEYS)),
        "text.self": Evidence(keys=text.from_grid(KEYS)),
        "text.cross": Evidence(received=image.from_grid(RECEIVED)),
    }
    decision = policy.after_attention(step, streams, {name: seen[name] for name in policy.looks(step)}, {})
    grids = {name: streams[name].layout.to_grid(merge.into, -1)[0].tolist() for name, merge in decision.merge.items()}
    kept = {name: streams[name].layout.to_grid(keep, False)[0, 1:].tolist() for name, keep in decision.keep.items()}
    return kept, grids, decision


def test_the_least_read_go_and_similar_ones_merge(steps, streams):
    kept, into, decision = decided(steps, streams)
    # .2 of six: one goes, one merges; and of the text, where 1, 3, 5 are targets, 4 is most like 3 (.9994)
    assert kept == {"image": [True, True, False, True, True, True]}
    assert into == {"image": [0, 1, 1, 3, 4, 5, 6], "text": [0, 1, 2, 3, 3, 5, 6]}
    assert not decision.merge["image"].sized and (decision.merge["text"].weight == 1).all()


def test_ratios_count_what_came_in(steps, streams):
    kept, into, _ = decided(steps, streams, prune_ratio=0.3, merge_ratio=0.5, text_merge_ratio=0.4)
    # 1.8 of six go: two; three of six are to merge, of the four that are left two can; of the text 2.4 do
    assert kept == {"image": [True, True, False, True, False, True]}
    assert into == {"image": [0, 1, 1, 3, 4, 5, 1], "text": [0, 1, 1, 3, 3, 5, 6]}


def test_one_knob_scales_all_three(steps, streams):
    config = {"prune_ratio": 0.3, "merge_ratio": 0.2, "text_merge_ratio": 0.1}
    # 1 - .7^2 = .51, 1 - .8^2 = .36, 1 - .9^2 = .19: of six 3.06, 2.16, 1.14; of 1, 4 and 6 one can merge: 4
    kept, into, _ = decided(steps, streams, **config, strength=2.0)
    assert kept == {"image": [True, False, False, True, False, True]}  # the third to go is 2, .19
    assert into == {"image": [0, 1, 2, 3, 6, 5, 6], "text": [0, 1, 2, 3, 3, 5, 6]}  # 4 is like 1 by .033, like 6 by .698
    kept, into, _ = decided(steps, streams, **config, strength=0.0)
    assert kept == {"image": [True] * 6} and into == {"image": list(range(7)), "text": list(range(7))}


def test_what_has_no_ratio_is_not_looked_at(steps, streams):
    step = next(step for step in steps if step.name == "fusion.0")
    counts = {"image": torch.tensor([7.0]), "text": torch.tensor([5.0])}
    pruned = PuMer(steps=steps, merge_ratio=0, text_merge_ratio=0)
    assert pruned.looks(step) == {"text.cross": {"received"}} and pruned.reduces(step) == {"image"}
    assert pruned.multiply_adds(step, counts).tolist() == [5 * 7 * 64]  # the scores of the cross-attention once more
    merged = PuMer(steps=steps, prune_ratio=0)
    assert merged.looks(step) == {"image.self": {"keys"}, "text.self": {"keys"}} and merged.reduces(step) == {"image", "text"}
    width = step.layers["text"].attentions[0].head_width
    assert merged.multiply_adds(step, counts).tolist() == [(3 * 4 + 2 * 3) * width]
    assert not decided(steps, streams, prune_ratio=0)[0]
    image = next(step for step in steps if step.name == "image.0")
    assert pruned.looks(image) == {} and pruned.reduces(image) == frozenset() and pruned.multiply_adds(image, counts) == 0


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_both_streams_shrink_layer_by_layer(make_model, make_inputs, kind):
    model = make_model("PuMer")
    with torch.no_grad():
        grids = kept_grids(model.trace(make_inputs(model), kind)[1])
    assert {name for name in grids if name.endswith("after")} == {
        f"fusion.{i}/{stream} after" for i in (0, 1) for stream in ("image", "text")
    }
    # 16 patches: 3.2 go and 3.2 merge; then of ten 2 and 2
    assert [grids[f"fusion.{i}/image after"].sum(1).tolist() for i in (0, 1)] == [[11] * 6, [7] * 6]
    # 7 2 0 5 7 1 words that may merge, of which 1.4 .4 0 1 1.4 .2 do, then of 6 2 0 4 6 1 words 1.2 .4 0 .8 1.2 .2
    assert grids["fusion.0/text after"].sum(1).tolist() == [8, 4, 2, 6, 8, 3]
    assert grids["fusion.1/text after"].sum(1).tolist() == [7, 4, 2, 5, 7, 3]


def test_blips_image_is_cut_for_the_later_layers_of_the_text():
    backbone = backbone_cases()["LavisBackbone/blip_vqa text first"]
    model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": {"type": "PuMer"}}).eval()
    with torch.no_grad():
        record = model.trace(random_inputs(model.backbone.input_format, [9, 4, 2], [0, 0, 1]))[1]
    fusion = [entry for entry in record.steps if entry.step.stage == "fusion"]
    assert model.policy.looks(fusion[0].step)["text.cross"] == {"keys", "received"}
    free = fusion[0].tokens["image"].counts()[0].item() - 1
    left = free - round(0.2 * free) * 2 + 1
    assert (fusion[0].after["image"].counts() == left).all() and (fusion[1].tokens["image"].counts() == left).all()


def test_two_images_are_pruned_each_by_its_own_attention():
    backbone = backbone_cases()["LavisBackbone/blip_nlvr shared images"]
    policy = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": {"type": "PuMer"}}).policy
    assert {name: view.name for name, view in policy.crosses["fusion.0"].items()} == {
        "image0": "text.cross0", "image1": "text.cross1",
    }  # fmt: skip
    assert set(policy.matched["fusion.0"]) == {"image0", "image1", "text"}


def test_a_backbone_without_a_text_that_reads_an_image():
    backbone = backbone_cases()["MMPretrainBackbone/ImageClassifier averaged"]
    with pytest.raises(UnsupportedBackboneError, match="layers is None: in none of these layers of this backbone a text reads"):
        MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": {"type": "PuMer"}})


@pytest.mark.parametrize("name", ["prune_ratio", "merge_ratio", "text_merge_ratio"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_an_impossible_ratio(steps, name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}; expected a share in \[0, 1\)"):
        PuMer(steps=steps, **{name: value})


def test_an_impossible_strength_or_place(steps):
    with pytest.raises(ValueError, match=r"strength of PuMer is 9; expected a number in \[0.0, 8.0\]"):
        PuMer(steps=steps, strength=9)
    with pytest.raises(ValueError, match="layers names layers"):
        PuMer(steps=steps, layers={"fusion": [7]})
    with pytest.raises(UnsupportedBackboneError, match=r"layers is {'fusion': \[\]}"):
        PuMer(steps=steps, layers={"fusion": []})
