"""Learning rate and weight decay of every parameter."""

from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from smarttrim_mm.engine.building import read_config
from smarttrim_mm.registry import MODELS

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "meter").glob("meter-base_*.py"))
HEAD_FACTORS = {"vqa": 50, "nlvr2": 10, "snli": 10, "rank": 5}


def groups(model: nn.Module, settings: dict) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay by name."""
    init_default_scope("smarttrim_mm")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = build_optim_wrapper(model, settings).optimizer.param_groups
    assert sum(len(group["params"]) for group in found) == len(names)
    return {names[id(value)]: (group["lr"], group["weight_decay"]) for group in found for value in group["params"]}


def settings(**paramwise: object) -> dict:
    optimizer = {"type": "SGD", "lr": 1.0, "weight_decay": 0.1}
    return {"type": "OptimWrapper", "constructor": "NamedRates", "optimizer": optimizer, "paramwise_cfg": paramwise}


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))


def test_a_named_part_keeps_the_rules_of_decay():
    model = nn.ModuleDict({"far": nn.Linear(2, 2), "top": nn.ModuleList([nn.Linear(2, 2), nn.LayerNorm(2), Fused()])})
    found = groups(model, settings(norm_decay_mult=0.0, bias_decay_mult=0.5, custom_keys={"top": {"lr_mult": 3.0}}))
    assert found == {
        "far.weight": (1.0, 0.1),
        "far.bias": (1.0, 0.05),
        "top.0.weight": (3.0, 0.1),
        "top.0.bias": (3.0, 0.05),
        "top.1.weight": (3.0, 0.0),
        "top.1.bias": (3.0, 0.0),
        "top.2.in_proj_weight": (3.0, 0.1),
        "top.2.in_proj_bias": (3.0, 0.05),
    }


def test_a_decay_that_is_named_stands():
    model = nn.ModuleDict({"top": nn.Linear(2, 2)})
    found = groups(model, settings(bias_decay_mult=0.0, custom_keys={"top": {"decay_mult": 2.0}}))
    assert found == {"top.weight": (1.0, 0.2), "top.bias": (1.0, 0.2)}
    assert groups(model, settings(norm_decay_mult=0.0))["top.bias"] == (1.0, 0.1)  # no rule for biases


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipes_are_meters(path):
    """Multipliers and decay by METER's own rules for names; the policy's are ours."""
    cfg = read_config(str(path))
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    base = cfg.optim_wrapper.optimizer.lr
    norms = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, nn.LayerNorm)}
    head = model.backbone.head_name
    for name, (rate, decay) in groups(model, cfg.optim_wrapper).items():
        if name.startswith("policy."):
            assert (rate, decay) == (pytest.approx(50 * base), 0), name
            continue
        factor = HEAD_FACTORS[head.split("_")[0]] if head in name else 5 if "cross_modal" in name else 1
        assert rate == pytest.approx(factor * base), name
        assert decay == (0 if "bias" in name or name in norms else 0.01), name
