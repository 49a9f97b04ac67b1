import pytest

from smarttrim_mm.engine.clock_tables import markdown, table
from smarttrim_mm.engine.contenders import HOST, HOST_SDPA

ONE = {"median": 1.0, "q1": 1.0, "q3": 1.0}


@pytest.fixture
def result():
    row = {
        "path": "packed",
        "ms_per_batch": {"median": 20.0, "q1": 19.0, "q3": 21.0},
        "speedup": {"median": 1.5, "q1": 1.4, "q3": 1.6},
        "speedup_over_sdpa": {"median": 1.3, "q1": 1.2, "q3": 1.35},
        "share_kept": {"median": 0.65, "q1": 0.6, "q3": 0.675},
        "decided_multiply_adds": 11.0,
        "executed_multiply_adds": 11.5,
        "dense_over_decided": 2.0,
        "peak_mib": 3.25,
        "memory_ratio": 0.75,
    }
    host = {**row, "path": "host's forward", "speedup": ONE, "share_kept": ONE, "executed_multiply_adds": None}
    sdpa = {**host, "speedup_over_sdpa": ONE}
    contenders = {HOST: host, HOST_SDPA: sdpa, "SmartTrim at 2x": row}
    return {"sdpa_baseline": HOST_SDPA, "batch_size": 8, "threads": 2, "held_mib": 120.4, "contenders": contenders}


def cells(line):
    return line.replace("|", " ").split()


def test_table_shows_every_contender(result):
    lines = table("batch 8", result).splitlines()
    assert lines[0].split()[:4] == ["batch", "8", "over", "host"]
    dense = "host dense|1.00|1.30|1.20 - 1.35|2.00|1.00|11.00|20.0|3.2|0.75"
    assert cells(lines[1]) == cells(dense)
    trimmed = "SmartTrim at 2x|1.50|1.40 - 1.60|1.30|1.20 - 1.35|2.00|0.65|11.00|11.50|20.0|3.2|0.75"
    assert cells(lines[3]) == cells(trimmed)
    assert len({len(line) for line in lines}) == 1
    long = {**result["contenders"], "fixed count, DynamicViT-style at 1.25x": result["contenders"]["SmartTrim at 2x"]}
    assert len({len(line) for line in table("batch 8", {**result, "contenders": long}).splitlines()}) == 1


def test_one_column_of_ratios_where_the_baselines_are_one(result):
    text = table("batch 8", {**result, "sdpa_baseline": HOST})
    assert "over host" not in text and text.count("over SDPA") == 1
    alone = table("batch 8", {**result, "sdpa_baseline": None})
    assert "over SDPA" not in alone and "x host" in alone


def test_markdown_holds_all_sizes_and_what_they_depend_on(result):
    content = {
        "command": "python tools/benchmark.py some.py",
        "dtype": "bf16",
        "machine": {"cpu": "Some CPU", "cores": 2},
        "versions": {"torch": "2.13.0", "lavis": None},
        "load_average": {"before": [0.1, 0.2, 0.3], "after": [1.1, 0.2, 0.3]},
        "baselines": "Two baselines.",
        "weights": "Random weights.",
        "results": [result, {**result, "batch_size": 1}],
    }
    lines = markdown(content).splitlines()
    assert lines[0] == "`python tools/benchmark.py some.py`"
    assert "Some CPU, 2 cores, bf16; torch 2.13.0; load average before 0.1, after 1.1." in lines[2]
    rows = [line.split(" | ") for line in lines if line.startswith("| ")]
    assert len({len(row) for row in rows}) == 1
    assert [row[0] for row in rows[2:]] == ["| 8"] * 3 + ["| 1"] * 3
    expected = "SmartTrim at 2x|packed|1.50 (1.40-1.60)|1.30 (1.20-1.35)|2.00|0.65 (0.60-0.68)|11.0|11.5|20.0|3.2"
    assert rows[4][1:] == [*expected.split("|"), "0.75 |"]
    assert "120 MiB" in lines[-1]
    both = {**content, "results": [result, {**result, "threads": 1}]}
    assert "| 8, 1 thread | " in markdown(both)
