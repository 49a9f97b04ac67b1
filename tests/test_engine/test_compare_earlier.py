"""Results of another machine or work dir that stand in for runs of a plan."""

import csv
from pathlib import Path

import pytest
from fake_comparison import CONFIGS, FakeRoot

from smarttrim_mm.engine import compare_estimate
from smarttrim_mm.engine.compare_estimate import Probe


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeRoot:
    monkeypatch.setattr(compare_estimate, "probe", lambda cfg: Probe(iteration=2.0, batch=0.1, batches={"val": 13, "test": 32}))
    return FakeRoot(tmp_path)


@pytest.fixture
def earlier(fake, monkeypatch) -> str:
    """A results.csv of another work dir, in which SmartTrim is done at 2x, and random is not run."""
    assert fake.run("--work-dir", str(fake.root / "there"), "--only", "SmartTrim") == 0
    (fake.tools / "calls").unlink()
    return str(fake.root / "there" / "plan" / "results.csv")


def changed(path: str, name: str, **changes: str) -> str:
    """Changes columns of the lines of a row."""
    with Path(path).open(newline="") as file:
        lines = list(csv.DictReader(file))
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows({**line, **(changes if line["name"] == name else {})} for line in lines)
    return path


def test_what_is_done_there_is_not_run_again_and_stands_in_the_tables(fake, earlier):
    changed(earlier, "SmartTrim", accuracy="0.93")
    assert fake.run("--earlier", earlier) == 0
    assert fake.short_calls == [
        "train dense fixed seed-0",  # which what is run here starts from
        "test dense fixed seed-0",
        "calibrate random budget-2x seed-0",
        "train random budget-2x seed-0",
        "calibrate random budget-2x seed-0",
        "test random budget-2x seed-0",
        "benchmark random budget-2x seed-0",
    ]
    taken = fake.results()["SmartTrim", 2.0, 0]
    assert (taken["status"], taken["accuracy"], taken["questions"], taken["clock_speedup"]) == ("done", 0.93, 100, 1.5)
    assert (taken["knob"], taken["knob_value"], taken["reason"]) == ("threshold", 0.5, f"from {earlier}")
    assert taken["folder"].startswith("there/runs/smarttrim-") and "python tools/" in taken["command"]
    rows = {row["name"]: row for row in fake.content()["rows"]}
    assert rows["SmartTrim"]["against_dense"] is None  # of its answers nothing is known
    assert rows["random"]["against_dense"] is not None
    assert rows["random"]["against_first"] is None
    assert set(rows["SmartTrim"]["pareto"]) == {"clock", "multiply_adds"}
    text = fake.markdown()
    assert "| SmartTrim | 1/1 (1 earlier) | 0.9300 |  |" in text
    assert f"Earlier: 1 runs are those of `{earlier}` and were not run again: SmartTrim at 2x, seed 0." in text
    assert "Earlier: of seed 0, rows that were run here start from the dense model that was made here" in text
    assert "not all settings" not in text
    for name in ("accuracy_compute.png", "accuracy_clock.png", "accuracy_differences.png", "compute_spread.png"):
        assert (fake.work_dir / "plan" / name).is_file()


def test_if_all_is_done_there_nothing_is_run(fake, earlier, capsys):
    assert fake.run("--earlier", earlier, rows=fake.plan["rows"][:1]) == 0
    assert not fake.calls
    assert "2 further runs are taken from earlier results" in capsys.readouterr().out
    assert "| dense | 1/1 (1 earlier) |" in fake.markdown()
    assert fake.run("--earlier", earlier, "--dry-run", seeds=[0, 1], rows=fake.plan["rows"][:1]) == 0
    assert not fake.calls


def test_what_is_done_here_counts_before_what_is_done_there(fake, earlier):
    assert fake.run("--no-benchmark") == 0
    changed(earlier, "SmartTrim", accuracy="0.93")
    assert fake.run("--no-benchmark", "--earlier", earlier) == 0
    assert fake.results()["SmartTrim", 2.0, 0]["accuracy"] == 0.9
    assert "earlier" not in fake.markdown().partition("## Commands")[0].partition("## Budget")[2]


def test_results_with_earlier_ones_are_earlier_results_too(fake, earlier):
    assert fake.run("--no-benchmark", "--earlier", earlier) == 0
    both, there = str(fake.work_dir / "plan" / "results.csv"), str(fake.root / "third")
    count = len(fake.calls)
    assert fake.run("--no-benchmark", "--earlier", both, "--work-dir", there) == 0
    assert len(fake.calls) == count


def test_settings_beneath_the_rows_own_that_differ_are_told(fake, earlier):
    assert fake.run("--no-benchmark", "--earlier", earlier, margin=0.02) == 0
    assert "Earlier: not all settings beneath the row's own are the same there and here" in fake.markdown()


def test_other_settings_are_refused(fake, earlier):
    rows = [
        {"name": "SmartTrim", "config": f"{CONFIGS}/quickstart_smarttrim.py", "options": {"model.distillation.weight": 2.0}}
    ]
    with pytest.raises(ValueError, match=r"options of SmartTrim at 2x, seed 0 is '' there and '{\"model.dist.*' in this plan"):
        fake.run("--earlier", earlier, rows=rows)
    rows = [{"name": "SmartTrim", "config": f"{CONFIGS}/quickstart_local-only.py"}]
    with pytest.raises(
        ValueError, match=r"config of SmartTrim at 2x, seed 0 is '.*quickstart_smarttrim.py' there and '.*local"
    ):
        fake.run("--earlier", earlier, rows=rows)


def test_files_that_do_not_fit_are_refused(fake, earlier, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--earlier none\.csv: no such file"):
        fake.run("--earlier", "none.csv")
    table = tmp_path / "table.csv"
    table.write_text("name,accuracy\nSmartTrim,0.9\n")
    with pytest.raises(ValueError, match=r"has no column policy, config, .*; give the results\.csv of a comparison"):
        fake.run("--earlier", str(table))
    with pytest.raises(ValueError, match="the plan asks for none of its runs"):
        fake.run("--earlier", earlier, seeds=[7])
    whole = Path(earlier).read_text()
    Path(earlier).write_text(whole.replace("dense,Dense,", "Dense,"))
    with pytest.raises(
        ValueError, match="the line of 'Dense' cannot be read: it has not as many fields as the table has columns"
    ):
        fake.run("--earlier", earlier)
    Path(earlier).write_text(whole)
    changed(earlier, "SmartTrim", accuracy="")
    with pytest.raises(ValueError, match="the line of 'SmartTrim' cannot be read: its status is 'done', and accuracy is empty"):
        fake.run("--earlier", earlier)
    changed(earlier, "SmartTrim", accuracy="much")
    with pytest.raises(ValueError, match="the line of 'SmartTrim' cannot be read: could not convert string to float: 'much'"):
        fake.run("--earlier", earlier)
