from dataclasses import replace

import pytest
import torch

from smarttrim_mm.engine.rivals import pad_to_longest
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.policies import imposed
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.policies.imposed import ImposedKeep, ImposedShares, Places
from smarttrim_mm.structures import Decision, TokenStream
from smarttrim_mm.testing import kept_grids

SMARTTRIM = {"type": "SmartTrim", "stable_init": False}


@pytest.fixture
def impose():
    def make(model, mean, spread=0.0, seed=0):
        steps = [step for stage in model.backbone.steps.values() for step in stage]
        return ImposedKeep.around(model.policy, steps, spread=spread, seed=seed).at(mean)

    return make


def test_shares_have_the_mean_and_spread_and_differ_by_instance():
    ids = torch.arange(4000)
    shares = ImposedShares(0.5, 0.1).of(ids)
    assert shares.mean().item() == pytest.approx(0.5, rel=0.01)
    assert (shares.std() / shares.mean()).item() == pytest.approx(0.1, rel=0.03)
    assert shares.unique().numel() > 3900
    assert torch.equal(ImposedShares(0.5, 0.1, shift=100).of(ids[:50]), shares[100:150])
    assert not torch.equal(ImposedShares(0.5, 0.1, seed=1).of(ids), shares)
    assert torch.equal(ImposedShares(0.5, 0.0).of(ids), torch.full((4000,), 0.5))
    assert ImposedShares(0.95, 0.1).of(ids).max() == 1
    whole = ImposedShares(1.0, 0.3)
    assert (ImposedShares(whole.mean_of_all, 0.3).of(ids) == 1).all()
    assert (ImposedShares(whole.mean_of_all - 0.1, 0.3).of(ids) < 1).any()


def test_tokens_fall_geometrically_over_the_first_stage_and_then_stay():
    step = LayerStep("image.0", {})
    shares = ImposedShares(0.25, 0.0, Places({("image.0", "image"): 0.5, ("image.1", "image"): 1.0}, {}, ()))
    layout = TokenStream.start(torch.zeros(2, 17, 4), ids=torch.arange(2)).layout
    assert shares.tokens(step, "image", layout).tolist() == [1 + 16 / 4] * 2
    assert shares.tokens(LayerStep("image.1", {}), "image", layout).tolist() == [1 + 16 / 16] * 2


def test_depths_count_the_layers_of_the_first_stage_that_cuts():
    class Cuts(Policy):
        def trims(self, step):
            return frozenset() if step.name == "image.0" else frozenset(step.streams()), frozenset()

    names = {"image.0": "i", "image.1": "i", "image.2": "i", "fusion.0": "t01", "fusion.1": "t01"}
    streams = {"i": "image", "t": "text", "0": "image0", "1": "image1"}
    steps = [LayerStep(name, {}, memories={streams[key]: 8 for key in keys}) for name, keys in names.items()]
    assert Places.of(Cuts(steps=steps), steps).depths == {
        ("image.1", "image"): 0.5, ("image.2", "image"): 1.0,
        ("fusion.0", "text"): 0.5, ("fusion.1", "text"): 1.0,
        ("fusion.0", "image0"): 1.0, ("fusion.0", "image1"): 1.0, ("fusion.1", "image0"): 1.0, ("fusion.1", "image1"): 1.0,
    }  # fmt: skip


def test_what_is_kept_by_hand(make_model, make_inputs, impose):
    model = make_model(SMARTTRIM)
    with torch.no_grad():
        grids = kept_grids(model.trace(make_inputs(model), policy=impose(model, 0.5))[1])
    # of 16 patches: ceil(16 / 4 ** (i / 3)) and [CLS]; the fusion keeps them
    counts = [grids[f"{step}/image"].sum(1).unique().tolist() for step in ("image.0", "image.1", "image.2", "fusion.1")]
    assert counts == [[1 + 11], [1 + 7], [1 + 4], [1 + 4]]
    assert torch.equal(grids["image.2/image"], grids["fusion.1/image"])
    assert (grids["image.2/image"] <= grids["image.0/image"]).all()
    assert grids["text.1/text"].sum(1).tolist() == [4, 3, 2, 4, 4, 3]  # of 9 4 2 7 9 3, two of them protected: a quarter
    assert grids["image.1/image.self"].sum(1).tolist() == [2] * 6
    heads = torch.stack([grid for name, grid in grids.items() if name.startswith("fusion") and "." in name.split("/")[1]])
    assert heads.float().mean().item() == 0.5 and heads.flatten(0, 1).unique(dim=0).shape[0] > 3  # each its own


def test_heads_are_rounded_at_random_to_the_mean(make_model, impose):
    model = make_model(SMARTTRIM)
    step = model.backbone.steps["image"][0]
    view = step.layers["image"].attentions[0]
    heads = impose(model, 0.45).shares.heads(step, view, torch.arange(3000))
    assert heads.unique().tolist() == [1, 2]
    assert heads.mean().item() == pytest.approx(0.45 * 4, rel=0.02)


def test_the_policy_is_asked_and_counted_but_overruled(make_model, make_inputs, impose, monkeypatch):
    model = make_model(SMARTTRIM)
    inputs, policy = make_inputs(model), impose(model, 0.5)
    asked = []
    own = model.policy.before_layer
    monkeypatch.setattr(model.policy, "before_layer", lambda step, *rest: asked.append(step.name) or own(step, *rest))
    with torch.no_grad():
        record = model.trace(inputs, policy=policy)[1]
        grids = kept_grids(record)
    assert asked == [step.name for stage in model.backbone.steps.values() for step in stage]
    for entry in record.steps:
        counts = {name: layout.counts() for name, layout in entry.before.items()}
        assert torch.equal(policy.multiply_adds(entry.step, counts), model.policy.multiply_adds(entry.step, counts))
        assert policy.reads(entry.step) == model.policy.reads(entry.step)
    model.policy.set_knob(0.9995)  # now it would drop everything
    with torch.no_grad():
        again = kept_grids(model.trace(inputs, policy=policy)[1])
        masked = kept_grids(model.trace(inputs, "masked", policy=policy)[1])
    assert all(torch.equal(grid, again[name]) and torch.equal(grid, masked[name]) for name, grid in grids.items())


def test_layers_and_notes_are_the_policys(make_model, make_inputs, impose, monkeypatch):
    model = make_model()
    imposed, step = impose(model, 0.5), model.layer_steps[0]
    masked, note = {"text": step.layers["text"]}, {"text": {"note": torch.ones(1)}}
    monkeypatch.setattr(model.policy, "layers_of", lambda step: masked)
    assert imposed.layers_of(step) is masked
    monkeypatch.setattr(model.policy, "before_layer", lambda *_: Decision(carry=note))
    stream = TokenStream.start(torch.rand(1, 5, step.layers["text"].width), ids=torch.zeros(1, dtype=torch.long))
    assert imposed.before_layer(step, {"text": stream}, {}).carry is note


def test_draws_take_no_random_state_and_follow_the_seed(make_model, make_inputs, impose):
    model = make_model(SMARTTRIM)
    inputs = make_inputs(model)
    state = torch.get_rng_state()
    with torch.no_grad():
        first, other = (kept_grids(model.trace(inputs, policy=impose(model, 0.5, 0.1, seed))[1]) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert any(not torch.equal(grid, other[name]) for name, grid in first.items())


@pytest.mark.parametrize(
    ("values", "message"), [((-0.1, 0.1), "mean is -0.1"), ((0.5, 0.5), "spread is 0.5"), ((0.5, -1), "spread")]
)
def test_impossible_shares(values, message):
    with pytest.raises(ValueError, match=message):
        ImposedShares(*values)


def test_depths_drawn_at_once_are_those_drawn_one_by_one(make_model, make_inputs, impose):
    model = make_model(SMARTTRIM)
    policy = impose(model, 0.6, 0.2)
    asked = []

    class Both(Policy):
        def before_layer(self, step, streams, guides):
            decision = policy.before_layer(step, streams, guides)
            asked.extend((step, name, streams[name].layout, keep) for name, keep in decision.keep.items())
            return decision

    with torch.no_grad():
        for inputs in (make_inputs(model), make_inputs(model, (5,), None), make_inputs(model)):
            model.trace(inputs, policy=Both(steps=()))
            model.trace(inputs, "masked", policy=Both(steps=()))
    assert len(asked) == 2 * 3 * 9 and not all(keep.all() for *_, keep in asked)
    for step, name, layout, keep in asked:
        assert torch.equal(policy.shares.which_tokens(step, name, layout), keep)


def test_no_execution_draws_more_often_than_another(make_model, make_inputs, impose, monkeypatch):
    model = make_model(SMARTTRIM)
    policy, sorts = impose(model, 0.6, 0.2), []
    own = imposed.ranks
    monkeypatch.setattr(imposed, "ranks", lambda grid: sorts.append(grid.shape) or own(grid))
    found = []
    with torch.no_grad():
        for run in (
            lambda inputs: model.trace(inputs, policy=policy),
            lambda inputs: model.trace(inputs, "masked", policy=policy),
            lambda inputs: pad_to_longest(model, policy, inputs),
        ):
            run(make_inputs(model))
            found.append(list(sorts))
            sorts.clear()
    assert len(found[0]) == 3  # texts, images, and images spread over their texts, however many layers cut them
    assert found[0] == found[1] == found[2]


def test_what_is_prepared_is_not_drawn_again(make_model, make_inputs, impose, monkeypatch):
    model = make_model(SMARTTRIM)
    policies, draws = [impose(model, mean, 0.2) for mean in (0.5, 0.7)], []
    own = imposed.hash_uniform
    monkeypatch.setattr(imposed, "hash_uniform", lambda *keys: draws.append(1) or own(*keys))
    with torch.no_grad():
        for seed in (1, 2):  # identities of no other test
            inputs = replace(make_inputs(model), sample_ids=torch.arange(6) + 7_000 * seed)
            for policy in policies:
                policy.prepare(inputs.sample_ids, inputs.image_ids)
            drawn = len(draws)
            for policy in policies:
                model.trace(inputs, policy=policy)
            assert drawn > 0
            if seed == 2:  # in a first pass the sizes are new
                assert len(draws) == drawn
            draws.clear()
