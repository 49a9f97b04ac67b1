import json

import pytest
import torch

from smarttrim_mm.engine import benchmark as tool
from smarttrim_mm.engine.benchmark import HOST, PACKED, benchmark, draw_pairs, table


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


def test_dense_policy_is_not_timed_twice(small_model, batches):
    model = small_model({"type": "Dense"})
    assert list(benchmark(model, iter(batches(model)), warmup=1)["contenders"]) == [HOST, PACKED]


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
    ],
)
def test_wrong_numbers_are_refused(small_config, option, message):
    with pytest.raises(ValueError, match=message):
        tool.main([small_config("dense"), *option])
