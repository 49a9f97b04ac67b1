import pytest
import torch

from smarttrim_mm.policies.ltp import _rises
from smarttrim_mm.structures import Evidence, TokenStream
from smarttrim_mm.testing import kept_grids


def ltp(**changes):
    return {"type": "LTP", "streams": ["image"], "layers": {"image": [0], "text": [], "fusion": []}, **changes}


def step_of(model, name):
    return next(step for stage in model.backbone.steps.values() for step in stage if step.name == name)


def decided(policy, step, received):
    """What the policy makes of attention received by the tokens of one image."""
    stream = TokenStream.start(torch.zeros(1, len(received), 48), ids=torch.tensor([0]))
    evidence = {"image.self": Evidence(received=torch.tensor([received]))}
    return policy.after_attention(step, {"image": stream}, evidence, {}).keep["image"]


def test_tokens_below_the_threshold_go(make_model):
    model = make_model(ltp(threshold=0.2))
    step = step_of(model, "image.0")
    received = [0.1, 0.45, 0.15, 0.25, 0.05]  # the class token has the first; the layout keeps it in any case
    assert decided(model.policy, step, received).tolist() == [[False, True, False, True, False]]
    model.set_curriculum(0.5)  # a threshold of 0.1
    assert decided(model.policy, step, received).tolist() == [[True, True, True, True, False]]
    model.set_curriculum(0.0)
    assert decided(model.policy, step, received).all()
    with torch.no_grad():
        model.policy.delta.fill_(0.5)  # half of the last threshold on top: 0.3
    model.set_curriculum(1.0)
    assert decided(model.policy, step, received).tolist() == [[False, True, False, False, False]]


def test_thresholds_rise_to_the_last_layer(make_model):
    policy = make_model({"type": "LTP", "threshold": 0.1}).policy
    found = dict(zip(policy.places, policy.thresholds().tolist(), strict=True))
    # the image has 3 + 2 layers, the text 2 + 2
    expected = {
        ("image.0", "image"): 0.02, ("image.1", "image"): 0.04, ("image.2", "image"): 0.06,
        ("fusion.0", "image"): 0.08, ("fusion.1", "image"): 0.1,
        ("text.0", "text"): 0.025, ("text.1", "text"): 0.05, ("fusion.0", "text"): 0.075, ("fusion.1", "text"): 0.1,
    }  # fmt: skip
    assert found == {place: pytest.approx(value) for place, value in expected.items()}


def test_the_two_images_of_a_text_go_on_where_the_image_was():
    places = [
        ("image.0", "image"),
        ("fusion.0", "text"),
        ("fusion.0", "image0"),
        ("fusion.0", "image1"),
        ("fusion.1", "image1"),
    ]
    assert _rises(places).tolist() == pytest.approx([1 / 3, 1.0, 2 / 3, 2 / 3, 1.0])


def test_the_gradient_is_that_of_the_soft_gate(make_model):
    model = make_model(ltp(threshold=0.2, temperature=0.1))
    model.policy.train()
    keep = decided(model.policy, step_of(model, "image.0"), [0.1, 0.2, 0.3])
    assert keep.tolist() == [[0.0, 1.0, 1.0]]
    keep.sum().backward()
    # d sigmoid(z) = sigmoid(z) sigmoid(-z); z is -1, 0 and 1, and dz / d delta is -0.2 / 0.1
    slope = 0.25 + 2 * 0.7310586 * 0.2689414
    assert model.policy.delta.grad.item() == pytest.approx(-2 * slope, rel=1e-4)


def test_thresholds_freeze_in_the_hard_stage(make_model, make_inputs):
    model = make_model(ltp(threshold=0.06, hard_from=0.7))
    model.train()
    inputs = make_inputs(model)
    for progress, learns in ((0.6, True), (0.7, False), (1.0, False)):
        model.set_curriculum(progress)
        model.zero_grad()
        losses = model.loss(inputs)
        sum(value for name, value in losses.items() if "loss" in name).backward()
        assert ("loss_mask" in losses) == learns
        assert (model.policy.delta.grad is not None) == learns


def test_the_mask_penalty(make_model, make_inputs):
    model = make_model(ltp(mask_weight=0.5, threshold=1.0))
    _, record = model.trace(make_inputs(model), "masked")
    assert model.policy.losses(record)["loss_mask"] == 0  # nothing is left, but the class token, which does not count
    model.set_curriculum(0.0)
    _, record = model.trace(make_inputs(model), "masked")
    assert model.policy.losses(record)["loss_mask"] == 0.5
    model.policy.mask_weight = 0
    assert model.policy.losses(record) == {}


def test_the_penalty_raises_thresholds(make_model, make_inputs):
    model = make_model(ltp(threshold=0.05))
    model.policy.train()
    _, record = model.trace(make_inputs(model), "masked")
    model.policy.losses(record)["loss_mask"].backward()
    assert model.policy.delta.grad.item() < 0  # descending, it grows


def test_attention_received_is_the_models(make_model, make_inputs):
    """A threshold between two scores of the model's own attention separates these tokens, in either execution."""
    model = make_model(ltp(threshold=1 / 17))
    inputs = make_inputs(model)
    grids = [kept_grids(model.trace(inputs, kind)[1]) for kind in ("masked", "packed")]
    after = "image.0/image after"
    assert torch.equal(grids[0][after], grids[1][after])
    assert grids[0][after].sum(1).min() > 1 and grids[0][after].sum(1).max() < 17  # scores have the mean 1 / 17
    assert grids[0]["image.0/image"].all()  # attention runs on everything, the MLP does not


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("threshold", -0.1, r"threshold is -0.1; expected a share of attention in \[0, 1\]"),
        ("temperature", 0, "temperature is 0; expected a positive number"),
        ("mask_weight", -1, "mask_weight is -1; expected a number >= 0"),
        ("hard_from", 0, r"hard_from is 0; expected a progress of the curriculum in \(0, 1\]"),
        ("streams", ["audio"], r"streams holds \['audio'\]"),
        ("layers", {"fusion": [9]}, r"layers names layers \[9\] of stage 'fusion'"),
        ("layers", {"image": [], "text": [], "fusion": []}, r"no such stream has a self-attention in these layers"),
    ],
)
def test_impossible_values(make_model, argument, value, message):
    with pytest.raises(ValueError, match=message):
        make_model(ltp(**{argument: value}))
