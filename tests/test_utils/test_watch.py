import pytest
import torch
from torch import nn

from smarttrim_mm.utils.watch import WatchedModules, WatchedTensor


def container():
    return nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 4), nn.GELU()), "b": nn.Linear(3, 3, bias=False)})


def write_in_place(modules):
    with torch.no_grad():
        modules["a"][0].bias[1] += 1


def write_in_inference_mode(modules):
    with torch.inference_mode():
        modules["a"][0].weight.mul_(2)


def put_data(modules):
    modules["b"].weight.data = modules["b"].weight.data.clone()


def go_there_and_back(modules):
    modules.to(torch.bfloat16).to(torch.float32)


def replace_parameter(modules):
    modules["b"].weight = nn.Parameter(modules["b"].weight.detach())


def replace_child(modules):
    modules["a"][0] = nn.Linear(3, 4)


def remove(modules):
    del modules["b"]


def add_a_hook(modules):
    modules["a"][1].register_forward_hook(lambda *_: None)


def put_a_forward(modules):
    modules["b"].forward = lambda x: x


CHANGES = [
    write_in_place,
    write_in_inference_mode,
    put_data,
    go_there_and_back,
    replace_parameter,
    replace_child,
    remove,
    add_a_hook,
    put_a_forward,
    lambda modules: modules.load_state_dict(modules.state_dict()),
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(change):
    modules = container()
    watched = WatchedModules(modules, ["a", "b"])
    modules["b"](torch.ones(3))
    assert watched.unchanged() and watched.unchanged()
    change(modules)
    assert not watched.unchanged()


def test_other_modules_may_change():
    modules = container()
    watched = WatchedModules(modules, ["b"])
    write_in_place(modules)
    assert watched.unchanged()


def test_an_address_that_is_used_again_is_not_taken_for_the_same():
    tensor = torch.zeros(1000)
    watched = WatchedTensor(tensor)
    for _ in range(20):
        tensor.data = torch.ones(1000)
        assert not watched.unchanged(tensor)


def test_inference_tensors_are_never_unchanged():
    with torch.inference_mode():
        tensor = torch.zeros(2)
    assert not WatchedTensor(tensor).unchanged(tensor)
