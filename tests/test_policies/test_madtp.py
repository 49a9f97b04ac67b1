import pytest
import torch

from smarttrim_mm.policies.madtp import MADTP, relative_importance
from smarttrim_mm.structures import Evidence, TokenStream
from smarttrim_mm.testing import kept_grids

# Token 0 is protected; of the second instance, 4 is gone. Of what is left, each attention sums to .8, or to .5 or .6.
RECEIVED = torch.tensor([[0.2, 0.1, 0.3, 0.2, 0.2], [0.5, 0.1, 0.3, 0.1, 0]])
ROW = torch.tensor([[0.2, 0.4, 0.1, 0.2, 0.1], [0.4, 0.3, 0.3, 0, 0]])
CROSS = torch.tensor([[0.2, 0.1, 0.1, 0.2, 0.4], [0.5, 0.5, 0, 0, 0]])
KEEP = torch.tensor([[True] * 5, [True, True, True, True, False]])


@pytest.fixture
def steps(make_model):
    return {step.name: step for stage in make_model().backbone.steps.values() for step in stage}


@pytest.fixture(params=["padded", "packed"])
def stream(request):
    stream = TokenStream.start(torch.randn(2, 5, 64), ids=torch.arange(2)).select(KEEP)
    return stream if request.param == "padded" else stream.pack()


def decided(steps, name, stream, threshold, progress=1.0):
    policy = MADTP(steps=list(steps.values()), threshold=threshold, streams=["image"])
    policy.set_curriculum(progress)
    received, row, cross = (stream.layout.from_grid(each) for each in (RECEIVED, ROW, CROSS))
    seen = {"image.self": Evidence(guide_row=row, received=received), "text.cross": Evidence(received=cross)}
    evidence = {view: seen[view] for view in policy.looks(steps[name])}
    merge = policy.after_attention(steps[name], {"image": stream}, evidence, {}).merge["image"]
    return stream.layout.to_grid(merge.into, -1).tolist(), stream.layout.to_grid(merge.weight, -1.0)


def test_importance_is_measured_against_the_mean_of_the_instance():
    found = relative_importance(torch.stack([RECEIVED, ROW]), torch.tensor([[False, True, True, True, True]]) & KEEP)
    # of four tokens (.1 + .4) / .8 / 2 * 4 and so on;
    # of three (.1 / .5 + .3 / .6) / 2 * 3, (.3 / .5 + .3 / .6) / 2 * 3, .1 / .5 / 2 * 3
    torch.testing.assert_close(found, torch.tensor([[0, 1.25, 1, 1, 0.75], [0, 1.05, 1.65, 0.3, 0]]))


def test_nothing_that_counts():
    assert relative_importance(torch.rand(2, 1, 3), torch.zeros(1, 3).bool()).tolist() == [[0, 0, 0]]


def test_an_instance_keeps_what_reaches_the_threshold(steps, stream):
    # without a text that reads them: 1.25 1 1 .75, and 1.05 1.65 .3
    into, weight = decided(steps, "image.0", stream, 1.02)
    assert into == [[0, 1, 2, 2, 2], [0, 1, 2, 3, -1]]  # a token that is left over alone stays
    torch.testing.assert_close(weight[0, 1:], torch.tensor([1.25, 1, 1, 0.75]))
    assert decided(steps, "image.0", stream, 1.1)[0] == [[0, 1, 2, 2, 2], [0, 1, 2, 1, -1]]
    assert decided(steps, "image.0", stream, 3.0)[0] == [[0, 1, 1, 1, 1], [0, 2, 2, 2, -1]]
    assert decided(steps, "image.0", stream, 0.0)[0] == decided(steps, "image.0", stream, 3.0, 0.0)[0]
    assert decided(steps, "image.0", stream, 0.0)[0] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, -1]]


def test_a_text_that_reads_the_image_has_a_say(steps, stream):
    # thirds of .1 + .4 + .1, .3 + .1 + .1, .2 + .2 + .2, .2 + .1 + .4, over .8, times four: 1, .833, 1, 1.167;
    # of the second (.2 + .5 + 1), (.6 + .5), .2: 1.7, 1.1, .2
    into, weight = decided(steps, "fusion.0", stream, 1.1)
    assert into == [[0, 1, 1, 1, 4], [0, 1, 2, 3, -1]]
    torch.testing.assert_close(weight, torch.tensor([[1e-12, 1, 5 / 6, 1, 7 / 6], [1e-12, 1.7, 1.1, 0.2, -1]]))


def test_what_is_looked_at_and_what_it_costs(steps):
    policy = MADTP(steps=list(steps.values()))
    assert policy.looks(steps["image.0"]) == {"image.self": {"guide_row", "received"}}
    assert policy.looks(steps["fusion.0"]) == {
        "image.self": {"guide_row", "received"}, "text.cross": {"received"},
        "text.self": {"guide_row", "received"}, "image.cross": {"received"},
    }  # fmt: skip
    counts = {"image": torch.tensor([17.0]), "text": torch.tensor([9.0])}
    assert policy.multiply_adds(steps["image.0"], counts).tolist() == [(17 + 17 * 17) * 48]
    assert policy.multiply_adds(steps["fusion.0"], counts).tolist() == [(17 + 17 * 17 + 9 + 9 * 9 + 2 * 17 * 9) * 64]


def test_counts_differ_between_instances(make_model, make_inputs):
    model = make_model({"type": "MADTP", "threshold": 0.9, "streams": ["image"]})
    with torch.no_grad():
        record = model.trace(make_inputs(model, (5,) * 12, tuple(range(12))))[1]
    grids = kept_grids(record)
    counts = grids["image.2/image after"].sum(1)
    assert len(counts.unique()) > 1 and counts.min() >= 1 and counts.max() < 17
    assert grids["fusion.1/text"].all() or torch.equal(grids["fusion.1/text"], grids["text.0/text"])


@pytest.mark.parametrize("threshold", [-0.1, 3.5, float("nan")])
def test_an_impossible_threshold(steps, threshold):
    with pytest.raises(ValueError, match=rf"importance threshold of MADTP is {threshold}; expected a number in \[0.0, 3.0\]"):
        MADTP(steps=list(steps.values()), threshold=threshold)
