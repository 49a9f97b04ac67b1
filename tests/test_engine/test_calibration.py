import json
from dataclasses import replace

import pytest
import torch

from smarttrim_mm.engine import calibration
from smarttrim_mm.engine.calibration import bisect, calibrate, measure, save_calibrated
from smarttrim_mm.inputs import TextTargets
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, random_inputs
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file, newest_checkpoint

SMARTTRIM = {"type": "SmartTrim", "stable_init": False}


def staircase(steps: int):
    return lambda x: 1 + int(x * steps) / steps


@pytest.mark.parametrize(("ratio", "low", "high"), [(lambda x: 1 + x, 0.0, 4.0), (lambda x: 5 - x, 4.0, 0.0)])
def test_bisect_finds_the_least_cut_in_either_direction(ratio, low, high):
    value = bisect(ratio, low, high, ratio(high), target=2.5, tolerance=0.001, max_steps=30)
    assert 2.5 <= ratio(value) <= 2.5 * 1.001


def test_bisect_lands_above_a_step_that_jumps_over_the_target():
    ratio = staircase(4)
    value = bisect(ratio, 0.0, 1.0, 2.0, target=1.6, tolerance=0.001, max_steps=20)
    assert ratio(value) == 1.75
    assert value == pytest.approx(0.75, abs=1e-5)


def test_bisect_evaluates_no_more_than_it_may():
    asked = []
    bisect(lambda x: asked.append(x) or 1 + x, 0.0, 4.0, 5.0, target=2.6, tolerance=0.0, max_steps=5)
    assert asked == [2.0, 1.0, 1.5, 1.75, 1.625]


def test_bisect_stops_within_the_tolerance():
    assert bisect(lambda x: 1 / 0, 0.0, 1.0, 2.004, target=2.0, tolerance=0.005, max_steps=9) == 1.0


@pytest.mark.parametrize("policy", [{"type": "Random"}, SMARTTRIM], ids=["Random", "SmartTrim"])
def test_calibrated_model_reaches_the_speed_up(small_model, batches, policy):
    model = small_model(policy)
    data = batches(model)
    wanted = measure(model, data).speedup * 1.2
    found = calibrate(model, lambda: data, wanted, margin=0.01, tolerance=0.05, max_steps=20)
    assert wanted <= found.after.speedup
    assert model.policy.get_knob() == pytest.approx(found.after.knob)
    assert measure(model, data) == found.after
    cheaper = [at for at in found.passes if at.speedup < wanted * 1.01]
    assert all(abs(at.knob - model.policy.knob.low) < abs(found.after.knob - model.policy.knob.low) for at in cheaper)


def test_ratio_grows_with_the_knob_of_the_random_policy(small_model, batches):
    model = small_model({"type": "Random"})
    data = batches(model)
    ratios = []
    for value in (0.0, 0.2, 0.4, 0.6, 0.8, 0.999):
        model.policy.set_knob(value)
        ratios.append(measure(model, data).speedup)
    assert ratios == sorted(ratios)
    assert ratios[0] == 1
    assert ratios[-1] == pytest.approx(measure(model, data).most_speedup)


def test_a_policy_that_cuts_too_much_is_let_out(small_model, batches):
    model = small_model({"type": "Random"})
    data = batches(model)
    model.policy.set_knob(0.999)
    found = calibrate(model, lambda: data, 1.5, margin=0.0)
    assert found.before.speedup > found.after.speedup >= 1.5
    assert found.after.knob < 0.999


def test_nothing_moves_where_the_aim_is_met(small_model, batches):
    model = small_model({"type": "Random"})
    data = batches(model)
    found = calibrate(model, lambda: data, 1.0, margin=0.0)
    assert len(found.passes) == 1
    assert found.before == found.after
    assert model.policy.get_knob() == 0.0


def test_measurement_is_that_of_all_pairs(small_model, batches):
    model = small_model(SMARTTRIM)
    data = batches(model)
    at = measure(model, data)
    with torch.inference_mode():
        traces = [model.trace(inputs) for inputs in data]
    right = [(logits.argmax(-1) == inputs.targets) for (logits, _), inputs in zip(traces, data, strict=True)]
    assert at.samples == 12
    assert at.accuracy == pytest.approx(torch.cat(right).float().mean().item())
    assert at.multiply_adds == pytest.approx(torch.cat([r.multiply_adds() for _, r in traces]).mean().item(), rel=1e-6)
    assert at.least_multiply_adds < at.multiply_adds < at.dense_multiply_adds


@torch.inference_mode()
def test_texts_are_judged_by_token_and_counted_by_sample():
    backbone = backbone_cases()["LavisBackbone/blip_caption shared images"]
    model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": SMARTTRIM}).eval()
    ids = torch.tensor([[101, 5, 8, 9, 102], [101, 7, 102, 0, 0], [101, 6, 4, 102, 0]])
    targets = TextTargets(ids, ids > 0, torch.ones(3), torch.tensor([0, 0, 1]), 2)
    inputs = replace(random_inputs(model.backbone.input_format, [4, 4]), targets=targets)
    logits, record = model.trace(inputs)
    assert logits.shape[0] == 4 + 2 + 3
    found = measure(model, [inputs, inputs])
    assert found.samples == 4
    assert found.accuracy == pytest.approx((logits.argmax(1) == targets.tokens).float().mean().item())
    assert found.dense_multiply_adds == pytest.approx(record.dense_multiply_adds().mean().item())


def test_speed_up_beyond_reach_names_what_is_reachable(small_model, batches):
    model = small_model({"type": "Random", "streams": ["text"]})
    data = batches(model)
    model.policy.set_knob(0.999)
    most = measure(model, data).speedup
    model.policy.set_knob(0.25)
    with pytest.raises(ValueError, match=rf"speedup is 50\.0, .*at most {most:.2f} \(with its drop ratio.* 0\.999"):
        calibrate(model, lambda: data, 50.0)
    assert model.policy.get_knob() == 0.25


@pytest.mark.parametrize(
    ("policy", "arguments", "message"),
    [
        ({"type": "Dense"}, {"speedup": 2.0}, "policy Dense has no knob"),
        ({"type": "Random"}, {"speedup": 0.9}, r"speedup is 0\.9; expected a number >= 1"),
        ({"type": "Random"}, {"speedup": float("nan")}, "speedup is nan"),
        ({"type": "Random"}, {"speedup": 2.0, "margin": -0.1}, r"margin is -0\.1"),
        ({"type": "Random"}, {"speedup": 2.0, "tolerance": 1.5}, r"tolerance is 1\.5"),
    ],
)
def test_impossible_requests_are_refused_before_any_data_is_read(small_model, policy, arguments, message):
    with pytest.raises(ValueError, match=message):
        calibrate(small_model(policy), lambda: pytest.fail("data was read"), **arguments)


def test_data_without_pairs_or_answers_is_refused(small_model, batches):
    model = small_model({"type": "Random"})
    with pytest.raises(ValueError, match="no batches to measure"):
        measure(model, [])
    inputs = batches(model)[0]
    object.__setattr__(inputs, "targets", None)
    with pytest.raises(ValueError, match="needs data with answers"):
        measure(model, [inputs])


def test_saved_checkpoint_holds_the_knob_and_no_training(small_config, small_checkpoint, tmp_path):
    config = small_config("smarttrim")
    source = small_checkpoint(config)
    model = calibration.build_model(calibration.read_config(config), source)
    model.policy.set_knob(0.625)
    new = str(tmp_path / "new" / "calibrated.pth")
    save_calibrated(new, model, source, {"target": 2.0})
    content = load_checkpoint_file(new)  # plain data only
    assert content.keys() == {"meta", "state_dict"}
    assert content["meta"] == {"seed": 3, "time": "20260101_000000", "calibration": {"target": 2.0}}
    assert content["state_dict"]["policy.knob_value"] == 0.625
    assert calibration.build_model(calibration.read_config(config), new).policy.get_knob() == 0.625
    assert newest_checkpoint(tmp_path / "new") is None  # nothing to resume a training from
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["calibrated.pth"]


def test_tool_calibrates_on_held_out_training_images(small_config, small_checkpoint, tmp_path, capsys):
    config = small_config("random")
    source = small_checkpoint(small_config("dense"))  # there is nothing to load for the random policy
    out = str(tmp_path / "calibrated.pth")
    found = calibration.main([config, source, "--speedup", "1.5", "--out", out, "--work-dir", str(tmp_path / "notes")])
    val = calibration.build_loader(calibration.read_config(config), "val").dataset
    assert found.after.samples == sum(len(val.get_data_info(i)["questions"]) for i in range(len(val)))
    assert found.after.speedup >= 1.5
    knob = load_checkpoint_file(out)["state_dict"]["policy.knob_value"]
    assert knob.item() == pytest.approx(found.after.knob)
    note = json.loads((tmp_path / "notes" / "calibration.json").read_text())
    assert note["after"]["speedup"] == found.after.speedup
    assert len(note["passes"]) == len(found.passes)
    printed = capsys.readouterr().out
    assert "ETA at most" in printed or "elapsed" in printed
    assert f"{found.before.speedup:.3f}x" in printed
    assert f"{found.after.speedup:.3f}x" in printed


def test_tool_refuses_a_policy_that_was_never_trained(small_config, small_checkpoint, tmp_path):
    source = small_checkpoint(small_config("dense"))
    with pytest.raises(ValueError, match=r"no weights 'policy\.\*'"):
        calibration.main([small_config("smarttrim"), source, "--out", str(tmp_path / "new.pth")])


def test_tool_sets_the_counts_of_a_policy_that_is_yet_to_be_trained(small_config, small_checkpoint, tmp_path):
    """Where the knob alone fixes them, whatever is learned: the training then aims at the wanted speed-up."""
    source, out = small_checkpoint(small_config("dense")), str(tmp_path / "start.pth")
    found = calibration.main([small_config("dynamicvit"), source, "--speedup", "1.2", "--out", out])
    assert found.after.speedup >= 1.2
    assert load_checkpoint_file(out)["state_dict"]["policy.knob_value"].item() == pytest.approx(found.after.knob)


def test_tool_names_a_missing_config_and_a_wrong_number(small_config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config 'none\.py'"):
        calibration.main(["none.py", "x.pth", "--out", "y.pth"])
    with pytest.raises(ValueError, match="--max-batches is 0"):
        calibration.main([small_config("random"), "x.pth", "--out", "y.pth", "--max-batches", "0"])
