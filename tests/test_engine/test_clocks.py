import math

import pytest
import torch

from smarttrim_mm.engine.clock_tables import table
from smarttrim_mm.engine.clocks import compare_clocks
from smarttrim_mm.engine.contenders import GRAPHED, HOST, HOST_SDPA, PACKED, dense_contenders, policy_contenders
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, excite, random_inputs

ONE = {"median": 1.0, "q1": 1.0, "q3": 1.0}


def compare(model, data, policies=None, **settings):
    policies = {"SmartTrim": model.policy} if policies is None else policies
    contenders = {**dense_contenders(model), **policy_contenders(model, policies)}
    return compare_clocks(model, contenders, iter(data), warmup=1, **settings)


def test_result_holds_the_compute_of_the_timed_pairs(small_model, batches):
    model = small_model({"type": "SmartTrim", "stable_init": False})
    model.packed_from = 1
    data = [inputs.unshared() for inputs in batches(model)]
    runs = []
    result = compare(model, data, on_run=lambda: runs.append(1))
    assert len(runs) == 3 * (1 + 2 + 1)  # warm-up, timed, memory
    assert (result["rounds"], result["pairs"]) == (2, 8)
    assert list(result["contenders"]) == [HOST, PACKED, "SmartTrim"]
    with torch.inference_mode():
        records = [model.trace(inputs)[1] for inputs in data[1:]]
    decided = torch.cat([record.multiply_adds() for record in records]).mean().item() / 1e6
    dense = torch.cat([record.dense_multiply_adds() for record in records]).mean().item() / 1e6
    executed = sum(record.executed_multiply_adds() for record in records) / 2 / 1e6
    row = result["contenders"]["SmartTrim"]
    assert row["decided_multiply_adds"] == pytest.approx(decided)
    assert row["executed_multiply_adds"] == pytest.approx(executed)
    assert row["path"] == "packed"
    assert result["dense_multiply_adds"] == pytest.approx(dense)
    assert result["contenders"][PACKED]["decided_multiply_adds"] == pytest.approx(dense)
    assert result["contenders"][HOST]["decided_multiply_adds"] == pytest.approx(dense)
    assert result["contenders"][HOST]["speedup"] == ONE
    assert 0 <= result["largest_logit_difference_of_dense_forwards"] < 1e-4


def test_share_kept_is_the_clocks_ratio_over_that_of_multiply_adds(small_model, batches):
    model = small_model({"type": "SmartTrim", "stable_init": False})
    rows = compare(model, [inputs.unshared() for inputs in batches(model)])["contenders"]
    row = rows["SmartTrim"]
    for key in ("median", "q1", "q3"):
        assert row["share_kept"][key] == pytest.approx(row["speedup_over_sdpa"][key] / row["dense_over_decided"])
    assert rows[HOST]["share_kept"] == ONE
    assert rows[PACKED]["speedup_over_packed"] == ONE


def test_memory_is_measured_beside_the_baselines(small_model, batches):
    model = small_model({"type": "SmartTrim"})
    result = compare(model, [inputs.unshared() for inputs in batches(model)])
    rows = result["contenders"]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert result["held_mib"] * 2**20 == pytest.approx(weights, rel=0.01)
    assert rows[HOST]["memory_ratio"] == 1
    for row in rows.values():
        assert row["peak_mib"] > 0
        assert row["memory_ratio"] == pytest.approx(row["peak_mib"] / rows[HOST]["peak_mib"])
        both = [row["peak_mib"] + result["held_mib"], rows[HOST]["peak_mib"] + result["held_mib"]]
        assert row["memory_ratio_with_weights"] == pytest.approx(both[0] / both[1])


def test_a_graph_is_not_said_to_take_no_memory(small_model, batches):
    model, runs = small_model({"type": "Dense"}), []
    contenders = {**dense_contenders(model), GRAPHED: lambda inputs: (model.host_forward(inputs), None)}
    result = compare_clocks(model, contenders, iter(batches(model)), warmup=1, on_run=lambda: runs.append(1))
    row = result["contenders"][GRAPHED]
    assert [row[key] for key in ("peak_mib", "memory_ratio", "memory_ratio_with_weights")] == [None] * 3
    assert row["dense_over_decided"] == 1
    assert len(runs) == 3 * (1 + 2 + 1)
    assert GRAPHED in table("batch 1", result)


def test_a_contender_without_a_record_is_timed_alone(small_model, batches):
    model = small_model({"type": "SmartTrim"})
    contenders = {**dense_contenders(model), "rival": lambda inputs: (model.host_forward(inputs), None)}
    row = compare_clocks(model, contenders, iter(batches(model)), warmup=1)["contenders"]["rival"]
    assert row["speedup"]["median"] > 0
    empty = ("path", "share_kept", "dense_over_decided", "decided_multiply_adds", "executed_multiply_adds")
    assert [row[key] for key in empty] == [None] * 5


def test_the_path_of_execution_is_named(small_model, batches):
    model = small_model({"type": "SmartTrim"})
    contenders = {**dense_contenders(model), "masked": lambda inputs: model.trace(inputs, kind="masked")}
    rows = compare_clocks(model, contenders, iter(batches(model)), warmup=1)["contenders"]
    assert {name: row["path"] for name, row in rows.items()} == {
        HOST: "host's forward",
        PACKED: "packed",
        "masked": "dense shapes",
    }


def test_a_forward_that_breaks_is_not_overlooked(small_model, batches, monkeypatch):
    model = small_model({"type": "Dense"})
    own = model.host_forward
    monkeypatch.setattr(model, "host_forward", lambda inputs: own(inputs).index_fill(1, torch.tensor([0]), float("nan")))
    assert math.isnan(compare(model, batches(model), {})["largest_logit_difference_of_dense_forwards"])


def test_both_baselines_of_a_host_with_attention_of_its_own():
    backbone = {**backbone_cases()["LavisBackbone/blip_vqa text first"], "num_candidates": 3}  # of 5 answers
    model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": {"type": "SmartTrim", "stable_init": False}})
    excite(model.eval())
    result = compare(model, [random_inputs(model.backbone.input_format, [9, 6], seed=seed) for seed in range(4)])
    rows = result["contenders"]
    assert list(rows) == [HOST, HOST_SDPA, PACKED, "SmartTrim"]
    assert result["sdpa_baseline"] == HOST_SDPA
    assert rows[HOST_SDPA]["speedup_over_sdpa"] == rows[HOST]["speedup"] == ONE
    assert rows[HOST_SDPA]["memory_ratio"] == 1
    assert rows[HOST_SDPA]["executed_multiply_adds"] is None
    assert rows[HOST_SDPA]["decided_multiply_adds"] == rows[HOST]["decided_multiply_adds"]
    dense = result["dense_multiply_adds"]
    assert rows["SmartTrim"]["dense_over_decided"] == pytest.approx(dense / rows["SmartTrim"]["decided_multiply_adds"])
    assert 0 <= result["largest_logit_difference_of_dense_forwards"] < 1e-3  # of the candidates


def test_one_baseline_where_the_host_has_the_same_attention_or_says_nothing(small_model, batches, monkeypatch):
    model = small_model({"type": "Dense"})
    result = compare(model, batches(model), {})
    assert result["sdpa_baseline"] == HOST
    assert result["contenders"][PACKED]["speedup_over_sdpa"] == result["contenders"][PACKED]["speedup"]
    monkeypatch.setattr(type(model.backbone), "host_uses_sdpa", False)
    result = compare(model, batches(model), {})
    assert result["sdpa_baseline"] is None
    assert result["contenders"][PACKED]["speedup_over_sdpa"] is None
    assert result["contenders"][PACKED]["share_kept"] == result["contenders"][PACKED]["speedup"]
