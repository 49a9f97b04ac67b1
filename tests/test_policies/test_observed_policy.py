import torch

from smarttrim_mm.policies.observed import Observed


def test_an_observed_policy_decides_the_same_and_is_priced_the_same(make_model, make_inputs):
    model = make_model({"type": "SmartTrim", "stable_init": False})
    inputs = make_inputs(model)
    observed = Observed(model.policy)
    with torch.no_grad():
        plain, record = model.trace(inputs)
        seen, same = model.trace(inputs, policy=observed)
    assert torch.equal(plain, seen)
    assert torch.equal(record.multiply_adds(), same.multiply_adds())
    assert len(observed.noted) == len(same.steps)


def test_scores_are_what_decisions_come_from(make_model, make_inputs):
    """In both executions; where a token is gone there is no score."""
    model = make_model({"type": "SmartTrim", "stable_init": False, "threshold": 0.45})
    inputs = make_inputs(model)
    for kind in ("packed", "masked"):
        observed = Observed(model.policy)
        with torch.no_grad():
            record = model.trace(inputs, kind, observed)[1]
        scored = 0
        for entry, scores in zip(record.steps, observed.noted, strict=True):
            for name, grid in scores.keep.items():
                before, after = entry.before[name].kept_grid(), entry.tokens[name].kept_grid()
                assert torch.equal(grid.isnan(), ~before)
                assert (after >= (grid.nan_to_num(-1.0) >= scores.threshold)).all()
                dropped = before & ~after
                assert (grid[dropped] < scores.threshold).all()
                scored += int(dropped.sum())
            for name, values in scores.heads.items():
                assert torch.equal(values >= scores.threshold, entry.heads[name] > 0)
        assert scored


def test_a_policy_without_scores_notes_nothing(make_model, make_inputs):
    model = make_model("Random")
    observed = Observed(model.policy)
    with torch.no_grad():
        model.trace(make_inputs(model), policy=observed)
    assert all(not scores.keep and not scores.heads and scores.threshold is None for scores in observed.noted)
