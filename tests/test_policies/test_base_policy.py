import pytest

from smarttrim_mm.policies.base import Knob, Policy, check_streams, chosen_steps


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


def test_unknown_layers_stages_and_streams(steps):
    with pytest.raises(ValueError, match=r"head_layers names stage 'vision'; this backbone has .*'fusion', 'image', 'text'"):
        chosen_steps(steps, {"vision": [0]}, "head_layers")
    with pytest.raises(ValueError, match=r"layers names layers \[3, 7\] of stage 'image', which has layers 0 to 2"):
        chosen_steps(steps, {"image": [0, 7, 3]}, "layers")
    with pytest.raises(ValueError, match=r"streams holds \['audio'\]; this backbone has \['image', 'text'\]"):
        check_streams(steps, ["text", "audio"])
