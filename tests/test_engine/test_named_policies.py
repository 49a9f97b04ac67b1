import pytest

from smarttrim_mm.engine.named_policies import named_policies


def test_the_models_own_unless_it_keeps_everything(small_model):
    model = small_model({"type": "SmartTrim"})
    assert named_policies(model, None) == {"SmartTrim": model.policy}
    assert named_policies(small_model({"type": "Dense"}), None) == {}


def test_names_and_files_in_their_order(small_model, tmp_path):
    model = small_model({"type": "SmartTrim"})
    snippet, whole = tmp_path / "few_layers.py", tmp_path / "whole.py"
    snippet.write_text("policy = dict(type='Random', keep_ratio=0.75, layers=dict(image=[1]))\n")
    whole.write_text("model = dict(type='TrimmedVLM', policy=dict(type='SmartTrim', threshold=0.25))\n")
    found = named_policies(model, ["Random", str(snippet), "SmartTrim", str(whole)])
    assert list(found) == ["Random", "few_layers", "SmartTrim", "whole"]
    assert found["SmartTrim"] is model.policy
    assert found["whole"] is not model.policy and found["whole"].threshold == 0.25
    assert found["few_layers"].get_knob() == 0.25 and found["Random"].get_knob() == 0
    assert not any(policy.training for policy in found.values())


def test_what_does_not_fit_is_refused(small_model, tmp_path):
    model = small_model({"type": "Random"})
    with pytest.raises(KeyError, match=r"'SmartTrm' is not registered as a policy.*Did you mean 'SmartTrim'"):
        named_policies(model, ["SmartTrm"])
    with pytest.raises(ValueError, match="names 'Random' twice"):
        named_policies(model, ["Random", "Random"])
    nothing = tmp_path / "nothing.py"
    nothing.write_text("threshold = 0.5\n")
    with pytest.raises(ValueError, match=r"nothing\.py has no policy"):
        named_policies(model, [str(nothing)])
    with pytest.raises(ValueError, match=r"'SmartTrim', whose weights some\.pth does not hold, being those of Random"):
        named_policies(model, ["Random", "SmartTrim"], "some.pth")
    assert list(named_policies(model, ["Random", "Dense"], "some.pth")) == ["Random", "Dense"]
