import pytest
import torch

from smarttrim_mm.testing import kept_grids

NOWHERE = {"image": [], "text": [], "fusion": []}


def adavit(**changes):
    return {"type": "AdaViT", "stable_init": False, **changes}


def traced(model, inputs, kind="masked"):
    with torch.no_grad():
        return model.trace(inputs, kind)[1]


@torch.no_grad()
def set_logits(scorer, *logits):
    """Makes a map give the same logits whatever it reads."""
    scorer.weight.zero_()
    scorer.bias.copy_(torch.tensor(logits))


def test_what_is_decided_on(make_model):
    policy = make_model(adavit()).policy
    assert len(policy.tokens) == len(policy.parts) == 2 + 3 + 2 * 2
    assert len(policy.heads) == 2 + 3 + 2 * 4
    image = make_model(adavit(streams=["image"], token_layers={"image": [1], "fusion": []}, part_layers=NOWHERE)).policy
    assert set(image.tokens) == {"image_1/image"} and not image.parts
    assert len(image.heads) == 3 + 2 * 2  # cross-attentions of the image too


def test_decisions_by_hand(make_model, make_inputs):
    """One layer; its maps are set, and so is what they decide."""
    only = {**NOWHERE, "image": [1]}
    model = make_model(adavit(streams=["image"], token_layers=only, head_layers=only, part_layers=only))
    inputs, read = make_inputs(model), []
    set_logits(model.policy.heads["image_1/image_self"], 1.0, -1.0, 0.1, -0.1)
    set_logits(model.policy.parts["image_1/image"], 1.0, -1.0)

    def difference(scorer, args, logits):
        read.append(args[0])
        return args[0][..., :1] - args[0][..., 1:2]

    model.policy.tokens["image_1/image"].register_forward_hook(difference)
    grids = []
    for kind in ("masked", "packed"):
        record = traced(model, inputs, kind)
        entry = next(entry for entry in record.steps if entry.step.name == "image.1")
        assert (entry.heads["image.self"] > 0).int().tolist() == [[1, 0, 1, 0]] * 3  # three images
        assert (entry.run["image.attention"] > 0).all() and not (entry.run["image.mlp"] > 0).any()
        grids.append(entry.tokens["image"].kept_grid())
    expected = read[0][..., 0] >= read[0][..., 1]
    expected[:, 0] = True  # the class token
    assert torch.equal(grids[0], expected) and torch.equal(grids[1], expected)
    assert 0 < expected.float().mean() < 1


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_an_mlp_that_no_instance_runs_costs_nothing(make_model, make_inputs, kind):
    only = {**NOWHERE, "image": [1]}
    model = make_model(adavit(streams=["image"], token_layers=NOWHERE, head_layers=NOWHERE, part_layers=only))
    inputs = make_inputs(model)
    set_logits(model.policy.parts["image_1/image"], 1.0, -1.0)
    record = traced(model, inputs, kind)
    width, hidden, tokens = 48, 48 * 4, 17
    own = 2 * 48  # the map of the two sub-layers
    saved = record.dense_multiply_adds() - record.multiply_adds()
    assert saved.tolist() == pytest.approx([2 * width * hidden * tokens - own] * 6, rel=1e-4)


def test_the_threshold_decides_at_inference(make_model, make_inputs):
    only = {**NOWHERE, "image": [1]}
    model = make_model(adavit(streams=["image"], token_layers=NOWHERE, head_layers=only, part_layers=NOWHERE))
    inputs = make_inputs(model)
    set_logits(model.policy.heads["image_1/image_self"], 0.0, 1.0, 2.0, 3.0)  # probabilities 0.5, 0.73, 0.88, 0.95
    for threshold, heads in ((0.4, 4), (0.6, 3), (0.8, 2), (0.9, 1), (0.99, 0)):
        model.policy.set_knob(threshold)
        assert traced(model, inputs).heads()["image.1/image.self"].tolist() == [heads / 4] * 6


def test_a_stable_start_keeps_everything_at_inference(make_model, make_inputs):
    record = traced(make_model("AdaViT"), make_inputs(make_model("AdaViT")))
    assert all(grid.any(1).all() for grid in kept_grids(record).values())
    assert all((ratio == 1).all() for ratio in (record.kept() | record.heads()).values())
    assert all((gate > 0).all() for entry in record.steps for gate in entry.run.values())


def test_the_usage_loss(make_model, make_inputs):
    only = {**NOWHERE, "image": [1]}
    config = adavit(streams=["image"], token_layers=only, head_layers=only, part_layers=only, part_target=0.75)
    model = make_model(config)
    set_logits(model.policy.tokens["image_1/image"], -100.0)
    set_logits(model.policy.heads["image_1/image_self"], 100.0, 100.0, 100.0, -100.0)
    set_logits(model.policy.parts["image_1/image"], 100.0, -100.0)
    model.policy.train()
    losses = model.policy.losses(traced(model, make_inputs(model)))
    # no token but the class token, which does not count; 3 of 4 heads; 1 of 2 sub-layers
    assert {name: round(float(loss), 5) for name, loss in losses.items()} == {
        "loss_token_usage": 2 * 0.5, "loss_head_usage": 2 * 0.25, "loss_part_usage": 2 * 0.25,
    }  # fmt: skip
    model.set_curriculum(0.0)  # targets of 1
    losses = model.policy.losses(traced(model, make_inputs(model)))
    assert [round(float(loss), 5) for loss in losses.values()] == [2 * 1.0, 2 * 0.25, 2 * 0.5]
    model.policy.usage_weight = 0
    assert model.policy.losses(traced(model, make_inputs(model))) == {}


def test_a_budget_of_the_model_reaches_every_map(make_model, make_inputs):
    budget = {"type": "ComputeBudget", "speedup": 1.2}
    model = make_model({"type": "AdaViT", "usage_weight": 0}, budget=budget).train()
    losses = model.loss(make_inputs(model))
    assert not [name for name in losses if name.endswith("usage")]
    losses["loss_budget"].backward()
    assert all(scorer.bias.grad.abs().sum() > 0 for scorer in model.policy.parts.values())
    assert all(scorer.bias.grad.abs().sum() > 0 for scorer in model.policy.tokens.values())
    assert all(scorer.bias.grad.abs().sum() > 0 for scorer in model.policy.heads.values())


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("token_target", 0, r"token_target is 0; expected a number in \(0, 1\]"),
        ("head_target", 1.5, r"head_target is 1.5; expected a number in \(0, 1\]"),
        ("part_target", -1, r"part_target is -1; expected a number in \(0, 1\]"),
        ("usage_weight", -1, "usage_weight is -1; expected a number >= 0"),
        ("temperature", 0, "temperature is 0; expected a positive number"),
        ("noise", -1, "noise is -1; expected a number >= 0"),
        ("threshold", 1.5, "threshold of AdaViT is 1.5; expected a number in"),
        ("streams", ["audio"], r"streams holds \['audio'\]"),
        ("part_layers", {"image": 1}, r"part_layers is \{'image': 1\}; expected lists of layer indices by stage"),
        ("part_layers", {"image": [7]}, r"part_layers names layers \[7\] of stage 'image'"),
    ],
)
def test_impossible_values(make_model, argument, value, message):
    with pytest.raises(ValueError, match=message):
        make_model(adavit(**{argument: value}))
