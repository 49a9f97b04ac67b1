import pytest
import torch

from smarttrim_mm.layers.gate_shares import gate_shares
from smarttrim_mm.testing import Replay, Strip

SMARTTRIM = {"type": "SmartTrim", "stable_init": False}


def shares_of(model, inputs, kind="masked", policy=None):
    with torch.no_grad():
        return gate_shares(model.trace(inputs, kind, policy=policy)[1]).on_host()


def test_shares_are_of_what_came_to_the_gate(make_model, make_inputs):
    model = make_model(SMARTTRIM)
    inputs = make_inputs(model)
    with torch.no_grad():
        record = model.trace(inputs, "masked")[1]
    shares = gate_shares(record).on_host()
    entry = next(entry for entry in record.steps if entry.step.name == "image.1")
    before, after = (layout.kept_grid() & ~layout.protected for layout in (entry.before["image"], entry.tokens["image"]))
    by_hand = after.sum(1) / before.sum(1)
    mean, spread, instances = shares["kept/image.1/image"]
    assert mean == pytest.approx(by_hand.mean().item(), abs=1e-6) and 0 < mean < 1
    assert spread == pytest.approx(by_hand.std(unbiased=False).item(), abs=1e-6) and spread > 0
    assert instances == 3  # images, not pairs
    heads = entry.heads["image.self"].float().mean(1)
    assert shares["heads/image.1/image.self"][0] == pytest.approx(heads.mean().item())


def test_both_executions_agree(make_model, make_inputs):
    model = make_model(SMARTTRIM)
    inputs = make_inputs(model)
    masked, packed = shares_of(model, inputs), shares_of(model, inputs, "packed")
    assert masked.keys() == packed.keys()
    for place, numbers in masked.items():
        assert packed[place] == pytest.approx(numbers, abs=1e-5)


def test_places_are_those_that_are_logged_and_trimmed(make_model, make_inputs):
    model = make_model({**SMARTTRIM, "streams": ["image"], "head_layers": {"image": [0], "text": [], "fusion": []}})
    inputs = make_inputs(model)
    shares = shares_of(model, inputs)
    assert shares.keys() <= model.loss(inputs).keys()
    assert {place.split("/")[-1] for place in shares} == {"image", "image.self"}
    assert not shares_of(make_model(), inputs)


def test_a_gate_behind_one_that_drops_all_has_nothing_to_decide_on(make_model, make_inputs):
    model = make_model(SMARTTRIM)
    shares = shares_of(model, make_inputs(model), policy=Strip(model.policy))
    assert shares["kept/image.0/image"] == (0.0, 0.0, 3)
    assert "kept/image.1/image" not in shares and "heads/image.1/image.self" in shares


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_gates_between_attention_and_mlp(make_model, make_inputs, kind):
    """EViT keeps 8 of 16 patches and a fused one, then 5 of these 9 and one; no attention reaches a threshold of 1."""
    model = make_model({"type": "EViT", "keep_ratio": 0.5, "layers": {"image": [0, 1]}})
    shares = shares_of(model, make_inputs(model), kind)
    assert {place: share[0] for place, share in shares.items()} == pytest.approx(
        {"within/image.0/image": 9 / 16, "within/image.1/image": 6 / 9}
    )
    model = make_model({"type": "LTP", "threshold": 1.0, "streams": ["image"], "layers": {"image": [2], "fusion": []}})
    assert shares_of(model, make_inputs(model), kind) == {"within/image.2/image": (0.0, 0.0, 3)}


def test_no_gradient_and_no_trimming_of_others(make_model, make_inputs):
    model = make_model(SMARTTRIM).train()
    inputs = make_inputs(model)
    record = model.trace(inputs, "masked")[1]
    assert not gate_shares(record).means.requires_grad
    with torch.no_grad():
        replayed = model.trace(inputs, "masked", policy=Replay(record))[1]
    assert not gate_shares(replayed).places  # it says of no place that it may cut it
