import pytest
import torch

from smarttrim_mm.engine import benchmark as tool
from smarttrim_mm.engine.benchmark_options import check_profile, parser
from smarttrim_mm.engine.contenders import PACKED
from smarttrim_mm.engine.part_times import REST, PartTimes, parts_table
from smarttrim_mm.layers import run_layer


def test_parts_of_a_pass_add_up_to_it(small_model, batches, monkeypatch):
    model = small_model({"type": "SmartTrim", "stable_init": False})
    clock = iter(range(10**6))
    monkeypatch.setattr("smarttrim_mm.engine.part_times.time.perf_counter", lambda: next(clock) / 1000)
    whole = run_layer.attend_packed
    with torch.inference_mode(), PartTimes([model.policy]) as parts:
        assert run_layer.attend_packed is not whole
        run = parts.of("trimmed", model.trace)
        for inputs in batches(model):
            run(inputs)
    assert run_layer.attend_packed is whole
    (first, *_), spent = parts._passes["trimmed"], parts.milliseconds("trimmed", slice(1, None))
    assert {"deciding", "cutting", "projections", "attention", "MLPs", "norms and sums", REST} == set(first) == set(spent)
    assert list(spent.values()) == sorted(spent.values(), reverse=True) and min(spent.values()) >= 0
    # the clock ticks at each look: two for each part's call, and two for the pass
    ticks = round(1000 * sum(first.values()))
    assert ticks % 2 == 1 and ticks > 2 * len(first)
    assert f"MLPs {spent['MLPs']:.1f}" in parts_table({"trimmed": spent})


def test_deciding_within_a_layer_is_deciding_too(small_model, batches):
    model = small_model({"type": "ToMe", "merge_ratio": 0.2})
    with torch.inference_mode(), PartTimes([model.policy]) as parts:
        parts.of("merged", model.trace)(next(iter(batches(model))))
    assert parts._passes["merged"][0]["deciding"] > 0


def test_tool_tells_where_the_time_goes(small_config, capsys):
    arguments = ["--speedups", "1.2", "--text-length", "6", "--batch-sizes", "2", "--rounds", "1", "--warmup", "1", "--profile"]
    (result,) = tool.main([small_config("smarttrim"), *arguments])["results"]
    assert list(result["parts"]) == [PACKED, "SmartTrim at 1.2x"]
    assert "deciding" not in result["parts"][PACKED] and "drawing what is imposed" in result["parts"]["SmartTrim at 1.2x"]
    assert "where the time goes" in capsys.readouterr().out


def test_devices_that_do_not_wait_are_refused():
    args = parser().parse_args(["config.py", "--profile"])
    check_profile(args, torch.device("cpu"))
    with pytest.raises(ValueError, match="--profile times functions of the host, and the model is on cuda"):
        check_profile(args, torch.device("cuda"))
