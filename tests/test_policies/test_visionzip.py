import pytest
import torch

from smarttrim_mm.policies.visionzip import VisionZip, zip_tokens
from smarttrim_mm.structures import TokenStream

# a class token and seven patches, three of them like east, four like north
ROW = torch.tensor([[0.3, 0.2, 0.05, 0.1, 0.05, 0.15, 0.1, 0.05]])
EAST, NORTH = [1.0, 0.0], [0.0, 1.0]
KEYS = torch.tensor([[EAST, NORTH, NORTH, EAST, EAST, NORTH, EAST, NORTH]])


def zipped(packed, **settings):
    layout = TokenStream.start(torch.zeros(1, 8, 4), ids=torch.tensor([3]))
    layout = (layout.pack() if packed else layout).layout
    row, keys = (ROW.flatten(), KEYS.flatten(0, 1)) if packed else (ROW, KEYS)
    merge = zip_tokens(layout, row, keys, **settings)
    assert torch.equal(merge.weight, torch.ones_like(row)) and not merge.sized
    return merge.into.reshape(8).tolist()


@pytest.mark.parametrize("packed", [False, True])
def test_dominant_tokens_stay_and_the_rest_merges_by_keys(packed):
    # ceil(7 * 0.5) = 4 stay, ceil(4 * 0.5) = 2 of them contextual. Dominant are 1 (0.2) and 5 (0.15). Of the others, 2 3 4 6 7,
    # two are sampled, the first and the fourth: 2 (north) and 6 (east). 3 and 4 are like 6, 7 is like 2
    assert zipped(packed, dropped=0.5, contextual=0.5) == [0, 1, 2, 6, 6, 5, 6, 2]


@pytest.mark.parametrize("packed", [False, True])
def test_contextual_tokens_are_never_none(packed):
    # of ceil(7 * 0.1) = 1 all are contextual: the first patch takes up all
    assert zipped(packed, dropped=0.9, contextual=0.1) == [0, 1, 1, 1, 1, 1, 1, 1]
    assert zipped(packed, dropped=0.0, contextual=0.1) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_the_papers_numbers(make_model):
    """192, 128 and 64 of 576 patches, of which 30, 20 and 10 are contextual."""
    stream = TokenStream.start(torch.zeros(1, 577, 1), ids=torch.tensor([3]))
    # attention falls from patch to patch, so that the dominant ones come first
    row = torch.linspace(1, 0.1, 577)[None]
    keys = torch.randn(1, 577, 4)
    for kept, contextual in ((192, 30), (128, 20), (64, 10)):
        into = zip_tokens(stream.layout, row, keys, torch.tensor(1 - kept / 576), 10 / 64).into[0]
        stays = into == torch.arange(577)
        assert stays.sum() == 1 + kept
        assert stays[: 1 + kept - contextual].all() and not stays[kept:].all()
        assert stays[1 + kept - contextual :].sum() == contextual


def test_only_what_comes_after_the_encoder_is_shortened(make_model, make_inputs):
    model = make_model({"type": "VisionZip", "keep_ratio": 0.25})
    with torch.no_grad():
        _, record = model.trace(make_inputs(model))
    ran = {entry.step.name: entry.tokens["image"].counts()[0].item() for entry in record.steps if "image" in entry.tokens}
    assert ran == {"image.0": 17, "image.1": 17, "image.2": 17, "fusion.0": 5, "fusion.1": 5}
    [cut] = [entry for entry in record.steps if entry.after]
    assert cut.after["image"].counts().tolist() == [5.0] * 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"keep_ratio": 0}, r"keep_ratio is 0; expected a share in \[0.001, 1\]"),
        ({"contextual": 0.0}, r"contextual is 0.0; expected a share of the kept tokens in \(0, 1\]"),
        ({"contextual": 1.1}, "contextual is 1.1"),
        ({"layers": {"image": [9]}}, r"layers names layers \[9\]"),
    ],
)
def test_bad_settings_are_refused(make_model, config, message):
    steps = [step for stage in make_model().backbone.steps.values() for step in stage]
    with pytest.raises(ValueError, match=message):
        VisionZip(steps=steps, **config)
