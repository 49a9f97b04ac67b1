import json
import math
from pathlib import Path

import pytest
import torch

from smarttrim_mm.engine import benchmark as tool
from smarttrim_mm.engine.benchmark import HOST, HOST_SDPA, PACKED, benchmark, draw_pairs, table
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, excite, random_inputs

CONFIGS = Path(__file__).parents[2] / "configs" / "lavis_blip"
SMALL_NLVR2 = """
_base_ = {base!r}
model = dict(backbone=dict(
    vision=dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=4),
    text=dict(vocab_size=120, hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=7),
))
"""
SMALL_VQA = SMALL_NLVR2.replace("num_hidden_layers=7", "num_hidden_layers=2")


def test_result_holds_the_compute_of_the_timed_pairs(small_model, batches):
    model = small_model({"type": "SmartTrim", "stable_init": False})
    data = [inputs.unshared() for inputs in batches(model)]
    runs = []
    result = benchmark(model, iter(data), warmup=1, on_run=lambda: runs.append(1))
    assert len(runs) == 3 * 2
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
    assert result["dense_multiply_adds"] == pytest.approx(dense)
    assert result["contenders"][PACKED]["decided_multiply_adds"] == pytest.approx(dense)
    assert result["contenders"][HOST]["decided_multiply_adds"] == pytest.approx(dense)
    assert result["contenders"][HOST]["speedup"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    assert 0 <= result["largest_logit_difference_of_dense_forwards"] < 1e-4


def test_a_forward_that_breaks_is_not_overlooked(small_model, batches, monkeypatch):
    model = small_model({"type": "Dense"})
    own = model.host_forward
    monkeypatch.setattr(model, "host_forward", lambda inputs: own(inputs).index_fill(1, torch.tensor([0]), float("nan")))
    assert math.isnan(benchmark(model, iter(batches(model)), warmup=1)["largest_logit_difference_of_dense_forwards"])


def test_dense_policy_is_not_timed_twice(small_model, batches):
    model = small_model({"type": "Dense"})
    assert list(benchmark(model, iter(batches(model)), warmup=1)["contenders"]) == [HOST, PACKED]


def test_both_baselines_of_a_host_with_attention_of_its_own():
    backbone = {**backbone_cases()["LavisBackbone/blip_vqa text first"], "num_candidates": 3}  # of 5 answers
    model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": {"type": "SmartTrim", "stable_init": False}})
    excite(model.eval())
    data = [random_inputs(model.backbone.input_format, [9, 6], seed=seed) for seed in range(4)]
    result = benchmark(model, iter(data), warmup=1)
    rows = result["contenders"]
    assert list(rows) == [HOST, HOST_SDPA, PACKED, "SmartTrim"]
    assert result["sdpa_baseline"] == HOST_SDPA
    assert rows[HOST_SDPA]["speedup_over_sdpa"] == rows[HOST]["speedup"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    assert rows[HOST_SDPA]["executed_multiply_adds"] is None
    assert rows[HOST_SDPA]["decided_multiply_adds"] == rows[HOST]["decided_multiply_adds"]
    dense = result["dense_multiply_adds"]
    assert rows["SmartTrim"]["dense_over_decided"] == pytest.approx(dense / rows["SmartTrim"]["decided_multiply_adds"])
    assert 0 <= result["largest_logit_difference_of_dense_forwards"] < 1e-3  # of the candidates


def test_one_baseline_where_the_host_has_the_same_attention_or_says_nothing(small_model, batches, monkeypatch):
    model = small_model({"type": "Dense"})
    result = benchmark(model, iter(batches(model)), warmup=1)
    assert result["sdpa_baseline"] == HOST
    assert result["contenders"][PACKED]["speedup_over_sdpa"] == result["contenders"][PACKED]["speedup"]
    assert "over SDPA" not in table("batch 8", result)
    monkeypatch.setattr(type(model.backbone), "host_uses_sdpa", False)
    result = benchmark(model, iter(batches(model)), warmup=1)
    assert result["sdpa_baseline"] is None
    assert result["contenders"][PACKED]["speedup_over_sdpa"] is None


def test_policies_are_timed_in_place_of_the_models_own(small_model, batches):
    model = small_model({"type": "SmartTrim"})
    rows = benchmark(model, iter(batches(model)), warmup=1, policies={"other": model.dense})["contenders"]
    assert list(rows) == [HOST, PACKED, "other"]
    assert rows["other"]["dense_over_decided"] == pytest.approx(1)


@pytest.fixture
def native(tmp_path):
    """A config of a task, at a small size; its data are not there."""

    def write(name: str, text: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(text.format(base=str(CONFIGS / f"{name}.py")))
        return str(path)

    return write


def test_tool_reaches_speedups_without_data_or_weights(native, tmp_path, capsys):
    config, out = native("blip_nlvr2_smarttrim-2x", SMALL_NLVR2), tmp_path / "benchmark.json"
    arguments = [config, "--speedups", "1.1", "1.25", "--text-length", "8", "--batch-sizes", "1", "3", "--rounds", "3"]
    content = tool.main([*arguments, "--warmup", "1", "--out", str(out)])
    assert json.loads(out.read_text()) == content
    assert (content["random_inputs"], content["text_length"], content["speedups"]) == (True, 8, [1.1, 1.25])
    assert (content["checkpoint"], content["spread"], content["policy"]) == (None, 0.1, "SmartTrim")
    for result, size in zip(content["results"], (1, 3), strict=True):
        rows = result["contenders"]
        assert list(rows) == [HOST, HOST_SDPA, PACKED, "SmartTrim at 1.1x", "SmartTrim at 1.25x"]
        assert (result["batch_size"], result["rounds"], result["pairs"]) == (size, 3, 3 * size)
        assert rows["SmartTrim at 1.1x"]["dense_over_decided"] == pytest.approx(1.1, rel=0.02)
        assert rows["SmartTrim at 1.25x"]["dense_over_decided"] == pytest.approx(1.25, rel=0.02)
    printed = capsys.readouterr().out
    assert "over SDPA" in printed and HOST_SDPA in printed
    assert "what is kept is imposed: SmartTrim decides live and is overruled" in printed


def test_tool_makes_up_answers(native):
    config = native("blip_vqav2_smarttrim-2x", SMALL_VQA)
    arguments = [config, "--random-inputs", "--answers", "9", "--batch-sizes", "2", "--rounds", "1", "--warmup", "0"]
    content = tool.main([*arguments, "--cfg-options", "model.backbone.num_candidates=4"])
    (result,) = content["results"]
    assert list(result["contenders"]) == [HOST, HOST_SDPA, PACKED, "SmartTrim"]
    assert (content["answers"], content["speedups"], content["spread"]) == (9, None, None)
    assert 0 <= result["largest_logit_difference_of_dense_forwards"] < 1e-3


def test_tool_says_what_can_be_reached(native, capsys):
    config = native("blip_nlvr2_smarttrim-2x", SMALL_NLVR2)
    with pytest.raises(ValueError, match=r"speedup is 90, but SmartTrim reaches at most \d+\.\d+ here"):
        tool.main([config, "--speedups", "1.1", "90", "--rounds", "1"])
    assert "host dense" not in capsys.readouterr().out  # nothing is timed first


def test_pairs_are_unshared_new_and_drawn_by_the_seed(small_config):
    cfg = tool.read_config(small_config("dense"))
    model, loader = tool.build_model(cfg), tool.build_loader(cfg, "test")

    def draw(seed: int):
        return list(draw_pairs(model, loader, batch_size=4, rounds=3, seed=seed))

    first, again, other = draw(1), draw(1), draw(2)
    items = [loader.dataset[i]["data_samples"] for i in range(len(loader.dataset))]
    questions = {int(q): item.image_id for item in items for q in item.question_ids}
    for inputs in first:
        assert inputs.image_index is None
        assert inputs.images.shape[0] == inputs.input_ids.shape[0] == 4
        assert int(inputs.text_mask.sum(1).max()) == inputs.input_ids.shape[1]  # padded to the longest, no further
        assert [questions[int(q)] for q in inputs.sample_ids] == inputs.image_ids.tolist()
    every = torch.cat([inputs.image_ids for inputs in first])
    assert every[:6].unique().numel() == 6  # all images before any comes again
    assert all(torch.equal(a.sample_ids, b.sample_ids) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a.sample_ids, b.sample_ids) for a, b in zip(first, other, strict=True))


def test_tool_writes_ratios_machine_and_command(small_config, small_checkpoint, tmp_path, capsys, monkeypatch):
    threads: list[int] = []
    config = small_config("smarttrim")
    out = tmp_path / "new" / "benchmark.json"
    arguments = [config, small_checkpoint(config), "--batch-sizes", "1", "3", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.append(count))
    content = tool.main([*arguments, "--threads", "2", "1", "--seed", "5"])
    assert json.loads(out.read_text()) == content
    found = [tuple(result[key] for key in ("threads", "batch_size", "rounds", "pairs")) for result in content["results"]]
    assert found == [(2, 1, 2, 2), (2, 3, 2, 6), (1, 1, 2, 2), (1, 3, 2, 6)]
    assert threads == [2, 1]
    assert content["policy"] == "SmartTrim"
    assert content["seed"] == 5
    assert content["machine"]["torch"] == torch.__version__
    assert config in content["command"]
    assert content["load_average"].keys() == {"before", "after"}
    printed = capsys.readouterr().out
    assert "batch 3, 2 threads, 2 rounds" in printed
    assert "packed dense" in printed


def test_table_shows_every_contender():
    row = {
        "ms_per_batch": {"median": 20.0, "q1": 19.0, "q3": 21.0},
        "speedup": {"median": 1.5, "q1": 1.4, "q3": 1.6},
        "decided_multiply_adds": 11.0,
        "executed_multiply_adds": 11.5,
    }
    host = {**row, "speedup": {"median": 1.0, "q1": 1.0, "q3": 1.0}, "executed_multiply_adds": None}
    lines = table("batch 8", {"contenders": {HOST: host, "SmartTrim": row}}).splitlines()
    assert lines[1].split() == ["host", "dense", "1.00", "20.0", "11.00"]
    assert lines[2].split() == ["SmartTrim", "1.50", "1.40", "-", "1.60", "20.0", "11.00", "11.50"]
    assert len({len(line) for line in (lines[0], lines[2])}) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--rounds", "0"], "--rounds is 0"),
        (["--batch-sizes", "1", "-2"], "--batch-sizes is -2"),
        (["--threads", "0"], "--threads is 0"),
        (["--split", "dev"], "split is 'dev'"),
        (["--warmup", "-1"], "--warmup is -1"),
        (["--speedups", "0.5"], r"--speedups is 0\.5"),
        (["--speedups", "2", "--spread", "0.7"], r"spread is 0\.7"),
        (["--speedups", "2"], r"Dense reaches at most 1\.00"),
        (["--spread", "0.2"], r"--spread is 0\.2 without --speedups"),
        (["--text-length", "9"], "--text-length is 9 without --random-inputs"),
        (["--random-inputs", "--text-length", "1"], "text length is 1"),
        (["--answers", "9"], "--answers is 9 without --random-inputs"),
        (["--random-inputs", "--answers", "9"], r"model\.backbone\.answers is not set"),
        (["some.pth", "--random-inputs"], "checkpoint is 'some.pth', and the inputs are to be random"),
    ],
)
def test_wrong_numbers_are_refused(small_config, option, message):
    with pytest.raises(ValueError, match=message):
        tool.main([small_config("dense"), *option])
