"""The search: what it ranks by, how it moves the scales, and when it ends."""

import copy

import pytest
import torch

from smarttrim_mm.losses.slicing import SlicingBudget

UPOP = {"type": "UPop"}


@pytest.fixture
def learning(make_model):
    """A small METER in training, its search about to begin."""
    return make_model(UPOP, budget={"type": "SlicingBudget", "speedup": 2.0}, distillation={"type": "SelfDistillation"}).train()


def step(model, inputs, progress):
    """An iteration of training without an optimizer."""
    model.set_curriculum(progress)
    losses = model.loss(inputs)
    torch.stack([value for key, value in losses.items() if "loss" in key]).sum().backward()
    return losses


def test_every_head_and_unit_has_a_scale(make_model):
    policy = make_model(UPOP).policy
    sizes = {site.name: site.size for site in policy.sites.all}
    assert sizes["image_0/image_self"] == 4 and sizes["image_0/image_mlp"] == 192 and sizes["fusion_1/text_cross"] == 4
    assert len(policy.scales) == sum(sizes.values()) and (policy.scales == 1).all()
    assert len({site.group for site in policy.sites.all}) == 2 + 2 + 6  # of text, image, and fusion of both
    assert not list(policy.parameters())


def test_importance_accumulates_the_gradients_of_the_scales(learning, make_inputs):
    """Against gradients with respect to the columns of the output weights: sum(w * dL/dw) over a head's is its scale's."""
    inputs, policy = make_inputs(learning), learning.policy
    learning.backbone.eval()  # no dropout, so that both passes are one
    step(learning, inputs, 0.0)
    out, fc2 = learning.backbone.trunk.blocks[1].attn.out_proj.weight, learning.backbone.trunk.blocks[1].mlp.c_proj.weight
    wanted = {
        "image_1/image_self": (out * out.grad).sum(0).unflatten(0, (4, -1)).sum(1),
        "image_1/image_mlp": (fc2 * fc2.grad).sum(0),
    }
    once = dict(wanted)
    for times in (1, 2):
        policy.set_curriculum(0.0)
        for site, place in zip(policy.sites.all, policy._places, strict=True):
            if site.name in wanted:
                torch.testing.assert_close(policy.importances[place], -times * once[site.name], atol=1e-6, rtol=1e-3)
        step(learning, inputs, 0.0)


def importances_of(make_model, make_inputs, **options):
    """After one iteration of the same small METER, without dropout."""
    torch.manual_seed(0)
    importance = options.pop("importance", "gradient")
    model = make_model({**UPOP, "importance": importance}, budget={"type": "SlicingBudget", "speedup": 2.0}, **options)
    model.policy.train()
    step(model, make_inputs(model), 0.0)
    model.set_curriculum(0.0)
    assert model.policy.importances.abs().sum() > 0
    return model.policy.importances


def test_magnitudes_have_no_sign(make_model, make_inputs):
    signed, magnitudes = (importances_of(make_model, make_inputs, importance=kind) for kind in ("gradient", "magnitude"))
    torch.testing.assert_close(magnitudes, signed.abs())
    assert (signed < 0).any()


def test_the_scales_of_the_chosen_fall_to_zero_and_the_others_stay(learning, make_inputs):
    inputs, policy = make_inputs(learning), learning.policy
    for progress, scale in ((0.0, 1.0), (1 / 3, 0.5), (1.0, 0.0)):
        step(learning, inputs, progress)
        policy.set_curriculum(progress)
        assert set(policy.scales.unique().tolist()) <= {scale, 1.0}
        saved = torch.where(policy.scales < 1, policy.costs[policy._numbers(range(len(policy.sites.all)))], 0.0).sum()
        assert float(saved) == pytest.approx(float(policy.goal) * (1 - scale), abs=float(policy.costs.max()))  # to a head
    assert policy.found and float(policy.goal) == pytest.approx(float(policy.dense) / 2)
    kept = policy.plan()
    assert all(keep.any() for keep in kept.values()) and sum(int((~keep).sum()) for keep in kept.values()) > 100


def test_the_choice_is_final(learning, make_inputs):
    inputs, policy = make_inputs(learning), learning.policy
    step(learning, inputs, 0.0)
    learning.set_curriculum(1.0)
    chosen = policy.scales.clone()
    losses = step(learning, inputs, 1.0)
    for progress in (0.2, 1.0):
        learning.set_curriculum(progress)
        assert torch.equal(policy.scales, chosen)
    assert losses["sliced"].item() == pytest.approx(2.0, rel=0.02)
    assert losses["speedup"].item() == 1.0  # nothing is left out yet


def test_the_search_goes_on_from_its_state(learning, make_inputs, make_model):
    inputs = make_inputs(learning)
    step(learning, inputs, 0.0)
    learning.set_curriculum(0.3)
    other = make_model(UPOP)
    other.load_state_dict(copy.deepcopy(learning.state_dict()))
    for model in (learning, other):
        model.set_curriculum(1.0)
    assert torch.equal(other.policy.scales, learning.policy.scales) and other.policy.found


def test_gradients_that_overflow_are_left_out(learning):
    learning.policy._note(slice(0, 3), torch.tensor([torch.inf, -2.0, torch.nan]))
    assert learning.policy._fresh[:3].tolist() == [0.0, 2.0, 0.0]


def test_recomputed_layers_count_once(make_model, make_inputs):
    kept, recomputed = (importances_of(make_model, make_inputs, checkpoint_layers=again) for again in (False, True))
    torch.testing.assert_close(recomputed, kept)


def test_a_plan_needs_the_end_of_the_search(learning):
    with pytest.raises(ValueError, match="the search of UPop is not over: it has seen 0 batches"):
        learning.policy.plan()


def test_unknown_importance(make_model):
    with pytest.raises(ValueError, match="importance is 'size'; expected one of 'gradient', 'magnitude'"):
        make_model({**UPOP, "importance": "size"})


def test_budget_needs_a_search_and_a_target_within_reach(make_model, make_inputs):
    with pytest.raises(ValueError, match=r"speedup is 0\.5; expected a number >= 1"):
        SlicingBudget(speedup=0.5)
    dense = make_model()
    with pytest.raises(ValueError, match="needs the policy UPop, and the model's is Dense"):
        SlicingBudget(speedup=2.0)(dense.trace(make_inputs(dense), "masked")[1])
    model = make_model(UPOP)
    with pytest.raises(ValueError, match=r"speedup is 99\.0, but slicing this model reaches at most \d+\.\d\d"):
        SlicingBudget(speedup=99.0)(model.trace(make_inputs(model), "masked")[1])
