"""Every input keeps as many tokens, those that the trimmers score best."""

import pytest
import torch

from smarttrim_mm.policies.observed import Observed
from smarttrim_mm.testing import kept_grids

IMAGE = {"streams": ["image"], "token_layers": {"image": [0], "text": [], "fusion": []}}


def topk(**changes):
    return {"type": "SmartTrimTopK", **IMAGE, **changes}


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_the_best_tokens_stay_as_many_of_every_input(make_model, make_inputs, kind):
    model = make_model(topk(keep_ratio=0.3))
    observed = Observed(model.policy)
    with torch.no_grad():
        _, record = model.trace(make_inputs(model), kind, policy=observed)
    number = next(i for i, entry in enumerate(record.steps) if entry.step.name == "image.0")
    entry = record.steps[number]
    patches = int(entry.before["image"].full()[0]) - 1
    count = int(-(-0.3 * patches // 1))
    grid, scores = entry.tokens["image"].kept_grid(), observed.noted[number].keep["image"].view(-1, patches + 1)
    assert (grid.sum(1) == 1 + count).all() and grid[:, 0].all()  # [CLS] is protected
    assert grid.gather(1, scores[:, 1:].topk(count, 1).indices + 1).all()
    assert not torch.equal(grid[0], grid[1])


def test_training_learns_scores_and_keeps_the_number(make_model, make_inputs):
    torch.manual_seed(0)
    model = make_model(topk(keep_ratio=0.5)).train()
    logits, record = model.trace(make_inputs(model), "masked")
    layout = next(entry.tokens["image"] for entry in record.steps if entry.step.name == "image.0")
    assert torch.equal(layout.counts(), 1 + ((layout.full() - 1) / 2).ceil())
    logits.square().sum().backward()
    [trimmer] = model.policy.token_trimmers.values()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trimmer.parameters() if weight.dim() > 1)


def test_noise_draws_other_tokens_in_training_only(make_model, make_inputs):
    model = make_model(topk(keep_ratio=0.5))
    inputs = make_inputs(model)

    def kept():
        with torch.no_grad():
            return kept_grids(model.trace(inputs, "masked")[1])["image.0/image"]

    still = kept()
    assert torch.equal(kept(), still)
    model.train()
    assert not torch.equal(kept(), kept())
    model.policy.noise = 0.0
    assert torch.equal(kept(), still)


def test_the_curriculum_lowers_the_number(make_model, make_inputs):
    model = make_model(topk(keep_ratio=0.2))
    inputs, counts = make_inputs(model), []
    for progress in (0.0, 0.5, 1.0):
        model.set_curriculum(progress)
        with torch.no_grad():
            _, record = model.trace(inputs)
        counts.append(float(record.kept()["image.0/image"].mean()))
    assert counts[0] == 1 > counts[1] > counts[2]


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_an_impossible_share_is_refused(make_model, ratio):
    with pytest.raises(ValueError, match=rf"keep_ratio is {ratio}; expected a share in \[0\.001, 1\]"):
        make_model(topk(keep_ratio=ratio))


def test_scores_of_pictures_have_no_threshold(make_model, make_inputs):
    model = make_model(topk())
    observed = Observed(model.policy)
    with torch.no_grad():
        model.trace(make_inputs(model), policy=observed)
    assert all(scores.threshold is None for scores in observed.noted)
