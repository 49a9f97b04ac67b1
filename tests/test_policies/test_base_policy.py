import re
from types import SimpleNamespace

import pytest
import torch

from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.policies.base import Knob, Policy, check_layers, check_streams, chosen_steps, cuts_so_far


@pytest.fixture
def steps(make_model):
    return [step for stage in make_model().backbone.steps.values() for step in stage]


class Turned(Policy):
    knob = Knob("strength", 1.0, 0.0)  # keeps most at 1


def test_a_policy_keeps_everything_unless_it_says_so(steps):
    policy = Policy(steps=steps)
    decision = policy.before_layer(steps[0], {}, {})
    assert decision.keep == {} and decision.heads == {}
    assert policy.trims(steps[0]) == (frozenset(), frozenset())
    assert policy.multiply_adds(steps[0], {}) == 0
    assert policy.losses(TrimRecord(torch.tensor([0]), policy)) == {}
    assert not policy.state_dict()


def test_the_knob_starts_where_most_is_kept_and_is_saved():
    policy = Turned(steps=[])
    assert policy.get_knob() == 1.0
    policy.set_knob(0.25)
    other = Turned(steps=[])
    other.load_state_dict(policy.state_dict())
    assert other.get_knob() == 0.25


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_value_outside_the_knobs_range(value):
    with pytest.raises(ValueError, match=rf"strength of Turned is {value}; expected a number in \[0.0, 1.0\]"):
        Turned(steps=[]).set_knob(value)


def test_a_policy_without_a_knob():
    policy = Policy(steps=[])
    for use in (policy.get_knob, lambda: policy.set_knob(0.5)):
        with pytest.raises(ValueError, match="Policy has no calibration knob"):
            use()


def test_chosen_steps(steps):
    every = {step.name for step in steps}
    assert chosen_steps(steps, None, "layers") == chosen_steps(steps, {}, "layers") == every
    some = chosen_steps(steps, {"image": [2], "text": []}, "layers")
    assert some == {"image.2", "fusion.0", "fusion.1"}


def test_cuts_so_far(steps):
    assert cuts_so_far(steps, ["image"], {"image.0", "image.2", "fusion.1", "text.0"}) == {
        ("image.0", "image"): 1, ("image.2", "image"): 2, ("fusion.1", "image"): 3,
    }  # fmt: skip


def test_cuts_go_on_in_the_images_of_a_text_and_begin_anew_in_a_text_that_does():
    once = SimpleNamespace(name="a.0", anew=frozenset(), streams=lambda: {"image": 8, "text": 8})
    again = SimpleNamespace(name="b.0", anew=frozenset({"text"}), streams=lambda: {"image0": 8, "image1": 8, "text": 8})
    assert cuts_so_far([once, again], ["image", "text"], {"a.0", "b.0"}) == {
        ("a.0", "image"): 1, ("a.0", "text"): 1, ("b.0", "image0"): 2, ("b.0", "image1"): 2, ("b.0", "text"): 1,
    }  # fmt: skip


def test_layers_are_lists_by_stage(steps):
    check_layers("layers", None)
    check_layers("layers", {"image": [0], "text": ()})
    for layers in ([1, 2], {"image": 1}, {"image": "1"}):
        with pytest.raises(ValueError, match=rf"layers is {re.escape(repr(layers))}; expected lists of layer indices by stage"):
            chosen_steps(steps, layers, "layers")


def test_unknown_layers_stages_and_streams(steps):
    with pytest.raises(ValueError, match=r"head_layers names stage 'vision'; this backbone has .*'fusion', 'image', 'text'"):
        chosen_steps(steps, {"vision": [0]}, "head_layers")
    with pytest.raises(ValueError, match=r"layers names layers \[3, 7\] of stage 'image', which has layers 0 to 2"):
        chosen_steps(steps, {"image": [0, 7, 3]}, "layers")
    with pytest.raises(ValueError, match=r"streams holds \['audio'\]; this backbone has \['image', 'text'\]"):
        check_streams(steps, ["text", "audio"])
