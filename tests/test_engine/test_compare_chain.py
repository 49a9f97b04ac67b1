"""Comparisons with fake tools: what is run, once, after failures and interrupts, and what the tables then say."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_comparison import CONFIGS, REPOSITORY, FakeRoot

from smarttrim_mm.engine import compare, compare_estimate
from smarttrim_mm.engine.compare_estimate import Probe


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRoot:
    monkeypatch.setattr(compare_estimate, "probe", lambda cfg: Probe(iteration=2.0, batch=0.1, batches={"val": 13, "test": 32}))
    return FakeRoot(tmp_path)


def test_every_row_is_trained_calibrated_tested_and_timed(fake, capsys):
    assert fake.run() == 0
    assert fake.short_calls == [
        "train dense fixed seed-0",
        "test dense fixed seed-0",
        "train smarttrim budget-2x seed-0",
        "calibrate smarttrim budget-2x seed-0",
        "test smarttrim budget-2x seed-0",
        "calibrate random budget-2x seed-0",  # its counts are fixed: it trains at its budget
        "train random budget-2x seed-0",
        "calibrate random budget-2x seed-0",
        "test random budget-2x seed-0",
        "benchmark smarttrim budget-2x seed-0",
        "benchmark random budget-2x seed-0",
    ]
    results = fake.results()
    assert {key: run["status"] for key, run in results.items()} == dict.fromkeys(results, "done")
    trimmed = results["SmartTrim", 2.0, 0]
    assert (trimmed["accuracy"], trimmed["questions"], trimmed["speedup"], trimmed["speedup_error"]) == (0.9, 100, 2.0, 0.0)
    assert (trimmed["clock_speedup"], trimmed["clock_q1"], trimmed["clock_batch_size"]) == (1.5, 1.4, 32)
    assert (trimmed["knob"], trimmed["knob_value"], trimmed["collapsed"]) == ("threshold", 0.5, "")
    names = ("accuracy_compute.png", "accuracy_clock.png", "accuracy_differences.png", "compute_spread.png")
    for name in names:
        assert (fake.work_dir / "plan" / name).read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "estimated time: " in printed
    assert "[9/9, 0:" in printed
    assert "results: work_dirs/compare/plan/results.md" in printed


def test_commands_carry_budget_seed_and_dense_checkpoint(fake):
    assert fake.run("--no-benchmark", seeds=[3]) == 0
    dense = next(fake.work_dir.glob("runs/dense-*/fixed/seed-3")).relative_to(fake.root)
    calls = fake.calls
    assert calls[0].endswith(f"--work-dir {dense}/train --cfg-options randomness.seed=3")
    options = calls[2].partition("--cfg-options ")[2]
    assert options == f"randomness.seed=3 model.budget.speedup=2.08 load_from={dense}/train/iter_4.pth"
    assert "--speedup 2 --margin 0.04" in calls[3]
    assert f" {dense}/train/iter_4.pth --speedup 2 " in calls[5]
    assert calls[6].partition("--cfg-options ")[2].startswith("randomness.seed=3 model.policy.seed=3 load_from=")
    assert "start.pth" in calls[6]
    assert calls[8].endswith("--cfg-options model.policy.seed=3")


def test_nothing_is_done_twice(fake):
    assert fake.run() == 0
    count, before = len(fake.calls), fake.content()
    assert fake.run() == 0
    assert len(fake.calls) == count
    assert fake.content() == before
    assert fake.run(budgets=[2.0, 3.0]) == 0
    added = fake.short_calls[count:]
    assert all("budget-3x" in call for call in added)
    assert len(added) == 9 - 2 - 1 + 3  # both rows' stages, and the two clocks


def test_plans_share_the_runs_that_are_equal(fake):
    assert fake.run("--no-benchmark") == 0
    count = len(fake.calls)
    rows = [
        {"name": "weight 1", "config": f"{CONFIGS}/quickstart_smarttrim.py", "options": {"model.distillation.weight": 1.0}},
        {"name": "weight 2", "config": f"{CONFIGS}/quickstart_smarttrim.py", "options": {"model.distillation.weight": 2.0}},
        {"name": "again", "config": f"{CONFIGS}/quickstart_smarttrim.py", "options": {"model.distillation.weight": 2.0}},
    ]
    assert fake.run("--no-benchmark", name="other", rows=rows) == 0
    assert [call.split()[:2] for call in fake.short_calls[count:]] == [
        ["train", "weight-2"],
        ["calibrate", "weight-2"],
        ["test", "weight-2"],
    ]
    results = fake.results("other")
    assert results["weight 1", 2.0, 0]["folder"] == fake.results()["SmartTrim", 2.0, 0]["folder"]
    assert results["again", 2.0, 0]["folder"] == results["weight 2", 2.0, 0]["folder"]
    assert [run["status"] for run in results.values()] == ["done"] * 4


def test_a_failure_is_reported_and_the_others_go_on(fake, capsys):
    crash = fake.crash("train", "smarttrim")
    assert fake.run("--no-benchmark") == 1
    assert "test random budget-2x seed-0" in fake.short_calls
    failed = fake.results()["SmartTrim", 2.0, 0]
    assert failed["status"] == "failed"
    assert "power cut" in failed["reason"]
    assert failed["command"].startswith("python tools/train.py work_dirs/compare/runs/smarttrim-")
    shown = capsys.readouterr()
    assert "FAILED: SmartTrim at 2x, seed 0: stage 1/3" in shown.out
    assert "  | power cut" in shown.out
    assert "1 runs failed; to go on: python tools/compare.py" in shown.err
    assert "| SmartTrim | 0/1 | failed |" in fake.markdown()
    crash.unlink()
    count = len(fake.calls)
    assert fake.run("--no-benchmark") == 0
    assert [call.split()[0] for call in fake.short_calls[count:]] == ["train", "calibrate", "test"]
    assert fake.results()["SmartTrim", 2.0, 0]["status"] == "done"


def test_a_failed_benchmark_does_not_take_the_test_away(fake):
    crash = fake.crash("benchmark", "smarttrim")
    assert fake.run() == 1
    result = fake.results()["SmartTrim", 2.0, 0]
    assert (result["status"], result["accuracy"], result["clock_speedup"]) == ("done", 0.9, None)
    assert result["reason"].startswith("no clock: stage 1/1 (benchmark")
    assert fake.results()["random", 2.0, 0]["clock_speedup"] == 1.5
    crash.unlink()
    assert fake.run() == 0
    assert (fake.results()["SmartTrim", 2.0, 0]["clock_speedup"], fake.results()["SmartTrim", 2.0, 0]["reason"]) == (1.5, "")


def test_what_cannot_be_reached_is_told_apart_from_a_failure(fake):
    words = "smarttrim_mm.losses.budget.UnreachableSpeedup: speedup is 2.08, but trimming reaches at most 1.63"
    fake.crash("train", "smarttrim", f"Traceback\n{words}")
    assert fake.run("--no-benchmark") == 0
    result = fake.results()["SmartTrim", 2.0, 0]
    assert result["status"] == "cannot reach"
    assert result["reason"] == "speedup is 2.08, but trimming reaches at most 1.63"
    assert "| SmartTrim | 0/1 | cannot reach |" in fake.markdown()


def test_without_the_dense_model_its_rows_are_left_out(fake):
    fake.crash("train", "dense")
    assert fake.run("--no-benchmark", seeds=[0]) == 1
    assert fake.short_calls == ["train dense fixed seed-0"]
    assert {key[0]: run["status"] for key, run in fake.results().items()} == {
        "dense": "failed",
        "SmartTrim": "left out",
        "random": "left out",
    }


def test_a_killed_comparison_goes_on_and_its_tools_are_ended(fake):
    """The command in a process of its own, with two jobs, ended while one of them hangs."""
    hang = fake.tools / "hang_train_smarttrim"
    hang.touch()
    program = (
        "import sys, pathlib; from smarttrim_mm.engine import compare, compare_estimate as e; "
        "e.probe = lambda cfg: e.Probe(1.0, 1.0, dict(val=1, test=1)); root = pathlib.Path(sys.argv[1]); "
        "sys.exit(compare.main(sys.argv[2:], tools=root / 'tools', root=root))"
    )
    command = [sys.executable, "-c", program, str(fake.root), fake.write_plan(), "--no-benchmark", "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begin = time.monotonic()
    while not (fake.tools / "hanging").exists() and first.poll() is None and time.monotonic() - begin < 100:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 143
    listed = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(fake.tools / "train.py") not in listed
    assert "tools/train.py work_dirs/compare/runs/smarttrim" not in listed
    assert not list(fake.work_dir.glob("runs/*/*/*/failure.json"))
    hang.unlink()
    before = [call for call in fake.short_calls if "dense" in call]
    assert fake.run("--no-benchmark") == 0
    assert [call for call in fake.short_calls if "dense" in call] == before
    assert all(run["status"] == "done" for run in fake.results().values())


def test_jobs_share_the_cores(fake, monkeypatch):
    seen = []
    execute = compare.Execution.__init__

    def spy(self, **settings) -> None:
        seen.append(settings.get("environment"))
        execute(self, **settings)

    monkeypatch.setattr(compare.Execution, "__init__", spy)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert fake.run("--jobs", "3", seeds=[0, 1]) == 0
    assert seen == [{"OMP_NUM_THREADS": "2"}, None]  # clocks run alone
    assert len(fake.results()) == 6
    with pytest.raises(ValueError, match="--jobs is 0"):
        fake.run("--jobs", "0")


def test_a_second_comparison_in_the_same_folder_is_refused(fake):
    fake.work_dir.mkdir(parents=True)
    with compare._alone(fake.work_dir), pytest.raises(ValueError, match="another comparison is running there"):
        fake.run()
    assert not fake.calls


def test_only_runs_the_named_rows_and_keeps_the_others_in_the_table(fake):
    assert fake.run("--no-benchmark", "--only", "random") == 0
    statuses = {key[0]: run["status"] for key, run in fake.results().items()}
    assert statuses == {"dense": "done", "SmartTrim": "not run", "random": "done"}
    assert "| SmartTrim | 0/1 | not run |" in fake.markdown()
    with pytest.raises(ValueError, match="no row is named 'smart trim'; did you mean 'SmartTrim'"):
        fake.run("--only", "smart trim")


def test_rows_without_a_plan_file(fake):
    configs = [f"{CONFIGS}/quickstart_{name}.py" for name in ("smarttrim", "local-only")]
    given = ["--dense", f"{CONFIGS}/quickstart_dense.py", "--rows", *configs, "--budgets", "1.5", "--seeds", "2"]
    assert fake.run(*given, "--no-benchmark") == 0
    assert list(fake.results("quickstart_dense")) == [
        ("dense", None, 2),
        ("quickstart_smarttrim", 1.5, 2),
        ("quickstart_local-only", 1.5, 2),
    ]
    with pytest.raises(ValueError, match="there is nothing to compare"):
        compare.main([], tools=fake.tools, root=fake.root)
    with pytest.raises(ValueError, match="which take its place"):
        compare.main([fake.write_plan(), "--dense", "x.py"], tools=fake.tools, root=fake.root)


def test_a_dry_run_says_what_would_be_run_and_for_how_long(fake, capsys):
    assert fake.run("--dry-run") == 0
    assert not fake.calls
    printed = capsys.readouterr().out
    assert "plan: 3 runs, 3 of them to do (9 stages)" in printed
    assert "random at 2x, seed 0: calibrate_start, train, calibrate, test" in printed
    # 1,700 + 2 x 450 iterations of 2 s each, and clocks
    assert "estimated time: 1.5 h with 1 at a time (from a probe" in printed


def test_finished_stages_teach_how_long_the_others_take(fake, capsys):
    assert fake.run("--no-benchmark") == 0
    capsys.readouterr()
    assert fake.run("--no-benchmark", "--dry-run", seeds=[0, 1]) == 0
    printed = capsys.readouterr().out
    assert "from finished stages of the same kind" in printed
    assert "estimated time: 0:0" in printed


def test_a_given_dense_checkpoint_is_not_trained(fake):
    folder = fake.root / "trained-1"
    folder.mkdir()
    (folder / "iter_9.pth").write_text(json.dumps(["dense", 1, None]))
    (folder / "last_checkpoint").write_text("anywhere/iter_9.pth")
    assert fake.run("--no-benchmark", "--dense-checkpoint", "trained-{seed}", "--seeds", "1") == 0
    assert fake.short_calls[:2] == ["test dense fixed seed-1", "train smarttrim budget-2x seed-1"]
    assert "load_from=trained-1/iter_9.pth" in fake.calls[1]
    settings = {"train_cfg.max_iters": 5, "randomness.seed": 0, "helper": 1}
    (folder / "run.json").write_text(json.dumps({"settings": settings}))
    assert fake.run("--tables-only", "--dense-checkpoint", "trained-{seed}", "--seeds", "1") == 0
    assert "the training in trained-1 was not the plan's for seed 1: " in fake.markdown()
    with pytest.raises(FileNotFoundError, match=r"dense_checkpoint is 'trained-{seed}', and .*trained-0 is neither"):
        fake.run("--dense-checkpoint", "trained-{seed}")


def test_the_dense_checkpoint_can_go_into_options(fake):
    config = f"{CONFIGS}/quickstart_smarttrim.py"
    rows = [{"name": "frozen", "config": config, "options": {"model.distillation.frozen_teacher": "{dense_checkpoint}"}}]
    assert fake.run("--no-benchmark", rows=rows) == 0
    assert fake.calls[2].endswith("/train/iter_4.pth")
    assert "model.distillation.frozen_teacher=work_dirs/compare/runs/dense-" in fake.calls[2]


def test_rows_that_are_not_trained_and_rows_of_their_own_compute(fake):
    rows = [
        {"name": "as it is", "config": f"{CONFIGS}/quickstart_random.py", "train": False},
        {"name": "longer", "config": f"{CONFIGS}/quickstart_dense-longer.py"},
        {"name": "on its own", "config": f"{CONFIGS}/quickstart_dense.py", "fixed": True, "from_dense": False,
         "options": {"model.backbone.vision.layers": 2}},
    ]  # fmt: skip
    assert fake.run(rows=rows) == 0
    assert fake.short_calls[2:] == [
        "calibrate as-it-is budget-2x seed-0",
        "test as-it-is budget-2x seed-0",
        "train longer fixed seed-0",
        "test longer fixed seed-0",
        "train on-its-own fixed seed-0",
        "test on-its-own fixed seed-0",
        "benchmark dense fixed seed-0",
        "benchmark as-it-is budget-2x seed-0",
        "benchmark on-its-own fixed seed-0",
    ]
    assert "load_from" not in fake.calls[6]
    assert fake.results()["longer", None, 0]["clock_speedup"] == 1.0
    assert fake.results()["on its own", None, 0]["clock_speedup"] == 1.0  # its milliseconds against the dense model's


def test_what_a_search_chose_is_sliced_off_and_held_against_the_dense_model(fake):
    """Dense takes 20 M; slicing aims at 2 * 1.04, so that 20 / 2.08 are left: 2.08x, 4 % more than the budget."""
    teacher = {"model.distillation.frozen_teacher": "{dense_checkpoint}"}
    rows = [{"name": "UPop", "config": f"{CONFIGS}/quickstart_upop-2x.py", "options": teacher}]
    assert fake.run(rows=rows) == 0
    assert fake.short_calls == [
        "train dense fixed seed-0",
        "test dense fixed seed-0",
        "train upop budget-2x seed-0",
        "slice upop budget-2x seed-0",
        "test upop budget-2x seed-0",
        "benchmark dense fixed seed-0",  # its host is another model, so that the dense model's own time is needed
        "benchmark upop budget-2x seed-0",
    ]
    folder = next(fake.work_dir.glob("runs/upop-*/budget-2x/seed-0")).relative_to(fake.root)
    assert "model.budget.speedup=2.08" in fake.calls[2]
    assert f" {folder}/train/iter_4.pth --out {folder}/sliced.pth" in fake.calls[3]
    assert f" {folder}/sliced.pth --work-dir" in fake.calls[4]
    result = fake.results()["UPop", 2.0, 0]
    assert (result["status"], result["collapsed"], result["knob"]) == ("done", "", None)
    assert result["multiply_adds"] == pytest.approx(20 / 2.08)
    assert result["speedup"] == pytest.approx(2.08)  # not 1, its own report's
    assert result["speedup_error"] == pytest.approx(0.04)
    assert result["clock_speedup"] == 2.0  # 10 ms of the dense model over 5 ms of its own host
    assert result["command"].count("python tools/") == 4
    assert "| UPop | 1/1 |" in fake.markdown()
    count = len(fake.calls)
    assert fake.run(rows=rows) == 0
    assert len(fake.calls) == count


def test_a_policy_of_its_own_compute_is_timed_itself(fake):
    rows = [{"name": "as it is", "config": f"{CONFIGS}/quickstart_random.py", "fixed": True}]
    assert fake.run(rows=rows) == 0
    assert fake.short_calls[-1] == "benchmark as-it-is fixed seed-0"
    assert fake.results()["as it is", None, 0]["clock_speedup"] == 1.5


def test_the_time_of_a_search_is_estimated_without_its_teacher(fake, monkeypatch, capsys):
    """Where trainings and tests taught how long they take, slicing needs no probe, whose teacher would not be there yet."""
    assert fake.run("--no-benchmark") == 0
    monkeypatch.undo()
    teacher = {"model.distillation.frozen_teacher": "{dense_checkpoint}"}
    rows = [{"name": "UPop", "config": f"{CONFIGS}/quickstart_upop-2x.py", "options": teacher}]
    capsys.readouterr()
    assert fake.run("--no-benchmark", "--dry-run", rows=rows) == 0
    assert "UPop at 2x, seed 0: train, slice, test" in capsys.readouterr().out


def test_a_damaged_file_does_not_lose_the_others(fake):
    assert fake.run("--no-benchmark") == 0
    folder = fake.root / fake.results()["random", 2.0, 0]["folder"]
    (folder / "tested" / "answers.json").write_text("{")
    (folder / "stages" / "train.json").write_text("[")
    assert fake.run("--tables-only") == 0
    assert fake.results()["random", 2.0, 0]["status"] == "damaged"
    assert "remove work_dirs/compare/runs/random-" in fake.results()["random", 2.0, 0]["reason"]
    assert fake.results()["SmartTrim", 2.0, 0]["status"] == "done"


def test_the_csv_has_a_line_a_run(fake):
    assert fake.run("--no-benchmark", seeds=[0, 1], budgets=[2.0, 4.0]) == 0
    with (fake.work_dir / "plan" / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * (1 + 2 * 2)
    line = next(each for each in lines if (each["name"], each["budget"], each["seed"]) == ("SmartTrim", "4.0", "1"))
    assert (line["policy"], line["accuracy"], line["multiply_adds"], line["dense_multiply_adds"]) == (
        "SmartTrim",
        "0.91",
        "5.0",
        "20.0",
    )
    assert (line["multiply_adds_p05"], line["multiply_adds_p50"], line["speedup_error"]) == ("5.0", "5.0", "0.0")
    assert line["clock_speedup"] == ""
    assert line["command"].count("python tools/") == 3


def test_the_markdown_compares_over_seeds(fake):
    assert fake.run("--no-benchmark", seeds=[0, 1]) == 0
    text = fake.markdown()
    assert "| SmartTrim | 2/2 | 0.9050 ± 0.0071 | -5.00 (" in text
    assert "| random | 2/2 | 0.6050 ± 0.0071 | -35.00 (" in text
    row = next(line for line in text.splitlines() if line.startswith("| SmartTrim | 2/2"))
    assert row.endswith("| compute |")
    assert not next(line for line in text.splitlines() if line.startswith("| random | 2/2")).endswith("| compute |")
    assert "A run counts as collapsed if" in text


def test_kept_compute_can_be_grouped_by_a_field_of_the_answers(fake):
    assert fake.run("--no-benchmark", "--group-by", "difficulty") == 0
    with pytest.raises(ValueError, match="group_by is 'cells', which no answer of 'SmartTrim' has; there are"):
        fake.run("--no-benchmark", "--group-by", "cells")


def test_smoke_runs_are_short_and_apart(fake):
    assert fake.run("--no-benchmark", "--smoke") == 0
    [config] = fake.work_dir.glob("runs/smarttrim-*/config.py")
    assert "max_iters=4" in config.read_text()
    assert (fake.work_dir / "plan-smoke" / "results.md").is_file()


def test_signals_are_handled_as_before_afterwards(fake):
    before = signal.getsignal(signal.SIGTERM)
    assert fake.run("--no-benchmark") == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert threading.active_count() < 20
