"""A comparison with the real tools, on a few iterations and images."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from smarttrim_mm.engine import compare
from smarttrim_mm.engine.stages import Chain

ROOT = Path(__file__).parents[2]
PLAN = """
dense = "configs/meter/quickstart_dense.py"
recipe = "configs/meter/quickstart_smarttrim.py"
budgets = [1.05]
rows = [
    dict(name="random", policy=dict(type="Random", streams=["image"], layers=dict(image=[0, 2], text=[], fusion=[0]))),
    dict(
        name="text",
        config="configs/meter/quickstart_smarttrim.py",
        options={"model.policy.streams": ["text"], "model.policy.token_layers": None, "model.policy.head_trimmer": None},
    ),
]
"""


def test_real_tools_in_this_process(tmp_path, monkeypatch):
    """All tools, each called as its file is; what cannot be reached ends as it would in a process of its own."""

    def execute(self: Chain, stage, command) -> int:
        monkeypatch.setattr(sys, "argv", [str(self.root / command[0]), *command[1:]])
        monkeypatch.chdir(self.root)
        try:
            runpy.run_path(str(self.root / command[0]), run_name="__main__")
        except ValueError as error:
            self.log(stage).parent.mkdir(parents=True, exist_ok=True)
            self.log(stage).write_text(f"{type(error).__module__}.{type(error).__qualname__}: {error}\n")
            return 1
        return 0

    monkeypatch.setattr(Chain, "_execute", execute)
    path = tmp_path / "small.py"
    path.write_text(PLAN)
    work_dir = tmp_path / "compare"
    assert compare.main([str(path), "--smoke", "--work-dir", str(work_dir)]) == 0
    folder = work_dir / "small-smoke"
    runs = {run["name"]: run for run in json.loads((folder / "results.json").read_text())["runs"]}
    assert {name: run["status"] for name, run in runs.items()} == {"dense": "done", "random": "done", "text": "cannot reach"}
    assert "trimming reaches at most 1.0" in runs["text"]["reason"]
    random = runs["random"]
    assert random["held_out_speedup"] >= 1.05 * 1.04
    assert random["speedup"] == pytest.approx(1.05 * 1.04, rel=0.03)
    assert random["multiply_adds_p05"] <= random["multiply_adds_p50"] <= random["multiply_adds_p95"]
    assert random["questions"] == runs["dense"]["questions"] > 0
    assert random["clock_speedup"] > 0
    assert runs["dense"]["speedup"] == pytest.approx(1.0)
    assert (folder / "accuracy_clock.png").is_file()
