"""The quickstart with the real tools, on a few iterations and images."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smarttrim_mm.engine import quickstart
from smarttrim_mm.engine.stages import Chain

ROOT = Path(__file__).parents[2]


def check_report(folder: Path, names: list[str]) -> dict:
    report = json.loads((folder / "report.json").read_text())
    assert list(report["models"]) == names
    test_questions = {model["questions"] for model in report["models"].values()}
    assert len(test_questions) == 1
    assert report["models"]["dense"]["speedup"] == pytest.approx(1.0)
    assert report["models"]["smarttrim"]["calibration"]["held_out_speedup"] >= 2.0
    assert [result["batch_size"] for result in report["clock"]] == [1, 32]
    assert len(report["targets"]) == 4
    for picture in report["pictures"]:
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")
    assert "numbers mean nothing" in (folder / "report.md").read_text()
    return report


def test_smoke_run_in_this_process(tmp_path, monkeypatch):
    """All tools, each called as its file is, without the start of a process for each."""

    def execute(self: Chain, stage, command) -> int:
        monkeypatch.setattr(sys, "argv", [str(self.root / command[0]), *command[1:]])
        monkeypatch.chdir(self.root)
        runpy.run_path(str(self.root / command[0]), run_name="__main__")
        return 0

    monkeypatch.setattr(Chain, "_execute", execute)
    folder = tmp_path / "quickstart"
    assert quickstart.main(["--smoke", "--skip-baselines", "--work-dir", str(folder)]) == 0
    check_report(folder, ["dense", "smarttrim", "dense-pass"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smoke_run_goes_on_after_a_kill(tmp_path):
    """The whole command in processes of its own, ended in the middle of a training."""
    folder = tmp_path / "quickstart"
    command = [sys.executable, "tools/quickstart.py", "--smoke", "--longer", "--work-dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    saved = folder / "smarttrim" / "iter_2.pth"
    begin = time.monotonic()
    while not saved.exists() and first.poll() is None and time.monotonic() - begin < 500:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 143
    done = (folder / "stages" / "train_dense.json").read_text()
    assert json.loads(done)["status"] == "done"
    assert json.loads((folder / "stages" / "train_smarttrim.json").read_text())["status"] == "started"
    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "train the dense model: done before" in second.stdout
    assert "--resume" in (folder / "logs" / "train_smarttrim.log").read_text()
    assert (folder / "stages" / "train_dense.json").read_text() == done
    names = ["dense", "dense-longer", "smarttrim", "local-only", "random", "dense-pass"]
    report = check_report(folder, names)
    assert report["models"]["random"]["calibration"]["held_out_speedup"] >= 2.0
    third = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert third.stdout.count("done before") == len(report["stages"])
