"""Plain modules are computed by their functions; whatever a module does besides is not lost."""

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, random_inputs
from smarttrim_mm.utils.direct import direct, parameter

PLAIN = {
    "Linear": lambda: nn.Linear(4, 3),
    "Linear without bias": lambda: nn.Linear(4, 3, bias=False),
    "LayerNorm": lambda: nn.LayerNorm(4, eps=0.1),
    "LayerNorm without weight": lambda: nn.LayerNorm(4, elementwise_affine=False),
}


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


def replace_forward(module):
    module.forward = lambda x: 2 * x


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("amp", [False, True])
def test_a_plain_module_gives_the_same_without_being_called(name, amp):
    module, x = PLAIN[name](), torch.randn(5, 4)
    for weight in module.parameters():
        nn.init.normal_(weight)
    assert direct(module) is not module
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        assert torch.equal(direct(module)(x), module(x))


@pytest.mark.parametrize("change", ["weight", "moved"])
def test_weights_are_those_of_now(change):
    module, x = nn.Linear(4, 3), torch.randn(5, 4)
    direct(module)(x)
    if change == "weight":
        module.weight = nn.Parameter(torch.ones(3, 4))
    else:
        module.double()
        x = x.double()
    assert torch.equal(direct(module)(x), module(x))


@pytest.mark.parametrize(
    "alter",
    [
        lambda module: module.register_forward_hook(lambda *_: None),
        lambda module: module.register_forward_pre_hook(lambda *_: None),
        lambda module: module.register_full_backward_hook(lambda *_: None),
        lambda module: module.register_full_backward_pre_hook(lambda *_: None),
        replace_forward,
        lambda module: module.compile(),
        lambda module: parametrize.register_parametrization(module, "weight", Twice()),
    ],
    ids=["hook", "pre hook", "backward hook", "backward pre hook", "forward", "compiled", "parametrised"],
)
@pytest.mark.parametrize("kind", ["Linear", "LayerNorm"])
def test_a_module_that_does_more_is_called(kind, alter):
    module = PLAIN[kind]()
    alter(module)
    assert direct(module) is module


def test_other_classes_and_functions_are_called():
    for function in (Doubled(4, 3), nn.GELU(), torch.relu):
        assert direct(function) is function


def test_a_hook_on_all_modules_counts():
    module = nn.Linear(4, 3)
    handle = register_module_forward_hook(lambda *_: None)
    try:
        assert direct(module) is module
    finally:
        handle.remove()
    assert direct(module) is not module


def test_a_parametrised_weight_is_found():
    module = nn.Linear(4, 3)
    parametrize.register_parametrization(module, "weight", Twice())
    assert torch.equal(parameter(module, "weight"), module.weight)
    assert parameter(nn.Linear(4, 3, bias=False), "bias") is None


@pytest.mark.parametrize("kind", ["packed", "masked"])
def test_hooks_on_a_host_see_its_layers_run(kind):
    config = {"backbone": backbone_cases()["METER/shared images"], "policy": {"type": "Dense"}}
    model = MODELS.build({"type": "TrimmedVLM", **config}).eval()
    inputs = random_inputs(model.backbone.input_format, [5, 3])
    hooked = {
        name: module
        for name, module in model.backbone.named_modules()
        if type(module) in (nn.Linear, nn.LayerNorm)
        and any(part in name for part in ("blocks", "encoder.layer", "cross_modal_"))
        and not name.endswith(("query", "key", "value"))  # their weights are read through views
    }
    seen = []
    for name, module in hooked.items():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    with torch.inference_mode():
        model.trace(inputs, kind)
    assert len(hooked) > 20
    assert sorted(seen) == sorted(hooked)
