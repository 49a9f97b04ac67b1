import re

import pytest
import torch

from smarttrim_mm.losses.budget import BudgetLoss, ComputeBudget, RatioBudget, check_reachable


@pytest.fixture
def trimmed(make_model, make_inputs):
    """A record of an untrained SmartTrim, sampled as in training."""
    model = make_model({"type": "SmartTrim", "stable_init": False, "token_layers": {"text": []}})
    model.policy.train()
    return model.trace(make_inputs(model), "masked")[1]


def test_compute_budget_by_hand(trimmed):
    kept = (trimmed.multiply_adds().mean() / trimmed.dense_multiply_adds().mean()).item()
    losses = ComputeBudget(speedup=2.0, weight=3.0)(trimmed)
    assert losses["loss_budget"].item() == pytest.approx(3 * (kept - 0.5) ** 2, rel=1e-4)
    assert losses["target"].item() == 2.0


def test_ratio_budget_by_hand(trimmed):
    """Layers that are not trimmed do not dilute the mean."""
    kept, heads = trimmed.kept(), trimmed.heads()
    tokens = [kept[f"image.{i}/image"] for i in range(3)] + [
        kept[f"fusion.{i}/{s}"] for i in range(2) for s in ("text", "image")
    ]
    losses = RatioBudget(token_ratio=0.6, head_ratio=0.7, weight=3.0)(trimmed)
    token_ratio, head_ratio = (
        torch.stack([r.mean() for r in ratios]).mean().item() for ratios in (tokens, list(heads.values()))
    )
    assert losses["loss_budget_tokens"].item() == pytest.approx(3 * (token_ratio - 0.6) ** 2, rel=1e-4)
    assert losses["loss_budget_heads"].item() == pytest.approx(3 * (head_ratio - 0.7) ** 2, rel=1e-4)
    assert losses["target_tokens"].item() == pytest.approx(0.6)


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_ratio_budget_counts_what_is_cut_between_attention_and_mlp(make_model, make_inputs, kind):
    """Of 16 patches EViT keeps 8 and a fused one, of these 9 then 5 and a fused one: (1 + 9) / 17 and (1 + 6) / 17 are left.

    Their mean is 0.5. The layers after them, which cut nothing and run on 7 tokens, play no part.
    """
    model = make_model({"type": "EViT", "keep_ratio": 0.5, "layers": {"image": [0, 1]}})
    _, record = model.trace(make_inputs(model), kind)
    losses = RatioBudget(token_ratio=0.4, head_ratio=0.5, weight=3.0)(record)
    assert losses["loss_budget_tokens"].item() == pytest.approx(3 * (0.5 - 0.4) ** 2, rel=1e-5)
    assert set(losses) == {"target_tokens", "loss_budget_tokens"}  # it decides on no head


def test_the_curriculum_moves_the_target(trimmed):
    budget = ComputeBudget(speedup=4.0)
    for progress, target in ((0.0, 1.0), (0.5, 1 / 0.625), (1.0, 4.0)):
        budget.set_curriculum(progress)
        assert budget(trimmed)["target"].item() == pytest.approx(target)
    ratios = RatioBudget(token_ratio=0.5, head_ratio=0.8)
    for progress, target in ((0.0, 1.0), (0.5, 0.75), (1.0, 0.5)):
        ratios.set_curriculum(progress)
        assert ratios(trimmed)["target_tokens"].item() == pytest.approx(target)


@pytest.mark.parametrize("budget", [ComputeBudget(speedup=3.0), RatioBudget(token_ratio=0.3, head_ratio=0.3)])
def test_gradients_close_gates(make_model, make_inputs, budget):
    """With everything kept, descending the loss lowers every keep bias."""
    model = make_model("SmartTrim")
    model.policy.train()
    _, record = model.trace(make_inputs(model), "masked")
    sum(value for key, value in budget(record).items() if "loss" in key).backward()
    for name, parameter in model.policy.named_parameters():
        if name.endswith("fc2.bias"):
            assert (parameter.grad >= 0).all() and parameter.grad.sum() > 0, name


def test_one_kind_of_trimmer_alone(make_model, make_inputs):
    for config, missing in (({"head_trimmer": None}, "heads"), ({"token_trimmer": None}, "tokens")):
        model = make_model({"type": "SmartTrim", **config})
        _, record = model.trace(make_inputs(model), "masked")
        losses = RatioBudget(token_ratio=0.5, head_ratio=0.5)(record)
        assert f"loss_budget_{missing}" not in losses and len(losses) == 2


def test_a_target_out_of_reach_names_the_reachable_maximum(trimmed):
    most = float(trimmed.dense_multiply_adds().mean() / trimmed.least_multiply_adds().mean())
    check_reachable(trimmed, most * 0.99)
    with pytest.raises(
        ValueError,
        match=re.escape(f"speedup is {most * 1.1}, but with this model and policy trimming reaches at most {most:.2f}"),
    ):
        ComputeBudget(speedup=most * 1.1)(trimmed)


def test_what_the_policy_may_not_cut_limits_the_reach(make_model, make_inputs):
    reach = []
    for config in (
        {},
        {"head_trimmer": None},
        {"streams": ["text"]},
        {"token_layers": {"image": [], "text": [], "fusion": [1]}},
    ):
        model = make_model({"type": "SmartTrim", **config})
        _, record = model.trace(make_inputs(model))
        reach.append(float(record.dense_multiply_adds().mean() / record.least_multiply_adds().mean()))
    assert reach[0] > reach[1] > 2 and reach[0] > reach[2] and reach[0] > reach[3] > 1


@pytest.mark.parametrize("speedup", [0.5, 0, -2, float("nan")])
def test_a_speedup_below_one(speedup):
    with pytest.raises(ValueError, match=f"speedup is {speedup}; expected a number >= 1"):
        ComputeBudget(speedup=speedup)


@pytest.mark.parametrize(
    ("argument", "value"), [("token_ratio", 0), ("token_ratio", 1.5), ("head_ratio", -0.1), ("head_ratio", 2)]
)
def test_a_ratio_out_of_range(argument, value):
    with pytest.raises(ValueError, match=rf"{argument} is {value}; expected a number in \(0, 1\]"):
        RatioBudget(**{"token_ratio": 0.5, "head_ratio": 0.5, argument: value})


def test_a_negative_weight():
    with pytest.raises(ValueError, match="weight of the budget loss is -1"):
        ComputeBudget(speedup=2.0, weight=-1)


def test_a_budget_must_define_forward():
    with pytest.raises(TypeError, match="Half does not define forward"):
        type("Half", (BudgetLoss,), {})(weight=1.0)(None)
