"""The real tools as two processes on a CPU, started by the real scripts."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smarttrim_mm import cli

ROOT = Path(__file__).parents[2]
LAVIS = "../lavis_blip/blip-small_easy-vqa-single_smarttrim-2x.py"
HOOK = """
custom_imports = dict(imports=["rank_weights"])
custom_hooks = [dict(type="CurriculumHook", end=0.5), dict(type="RankWeightsHook")]
"""


def run(script: str, *arguments: str) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(Path(__file__).parent),
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = ["bash", str(ROOT / "tools" / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def rank_states(work_dir: Path) -> list[dict]:
    return [torch.load(work_dir / f"rank_{rank}.weights", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module", params=["quickstart_smarttrim.py", LAVIS], ids=["METER", "LAVIS"])
def runs(request, small_config, tmp_path_factory) -> tuple[str, Path, Path]:
    """A config, the work dir of a training by two processes, and that of one that was stopped and resumed."""
    config = small_config(HOOK, base=request.param)
    straight, resumed = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("resumed")
    run("dist_train.sh", config, "2", "--work-dir", str(straight))
    for name in ("iter_2.pth", "run.json"):
        shutil.copy(straight / name, resumed)
    run("dist_train.sh", config, "2", "--work-dir", str(resumed), "--resume")
    return config, straight, resumed


def test_ranks_hold_equal_weights_and_draw_different_noise(runs):
    _, straight, _ = runs
    first, second = rank_states(straight)
    assert not torch.equal(first.pop("draw"), second.pop("draw"))
    for name in first:
        assert torch.equal(first[name], second[name]), name
    saved = torch.load(straight / "iter_4.pth", weights_only=True)["state_dict"]
    start = torch.load(straight / "iter_2.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], first[name]) for name in saved)
    assert any(not torch.equal(saved[name], start[name]) for name in saved)


def test_resuming_is_exact_on_both_ranks(runs):
    _, straight, resumed = runs
    for ours, theirs in zip(rank_states(straight), rank_states(resumed), strict=True):
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), name


def test_metrics_equal_those_of_one_process(runs, tmp_path, monkeypatch):
    config, straight, _ = runs
    checkpoint, two, one = str(straight / "iter_4.pth"), tmp_path / "two.json", tmp_path / "one.json"
    run("dist_test.sh", config, checkpoint, "2", "--work-dir", str(tmp_path / "work"), "--out", str(two))
    monkeypatch.syspath_prepend(Path(__file__).parent)
    cli.test([config, checkpoint, "--work-dir", str(tmp_path / "work"), "--out", str(one)])
    two_said, one_said = (json.loads(path.read_text()) for path in (two, one))
    executed = "compute/executed_multiply_adds"  # depends on which texts share a batch
    assert two_said["metrics"].pop(executed) > 0 and one_said["metrics"].pop(executed) > 0
    assert two_said["metrics"] == pytest.approx(one_said["metrics"], rel=1e-6)
    for ours, theirs in zip(two_said["predictions"], one_said["predictions"], strict=True):
        assert ours.pop("score") == pytest.approx(theirs.pop("score"), abs=1e-5)
        assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("slurm_train.sh", ["part", "job", "c.py", "--amp"]),
        ("slurm_test.sh", ["part", "job", "c.py", "x.pth", "--out", "o.json"]),
    ],
)
def test_slurm_scripts(tmp_path, script, arguments):
    srun = tmp_path / "srun"
    srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "py", "GPUS": "2", "SRUN_ARGS": "--exclusive -t 1:00"}
    command = ["bash", str(ROOT / "tools" / script)]
    said = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=True)
    words = said.stdout.split("\n")
    tool = str(ROOT / "tools" / script.replace("slurm_", "").replace(".sh", ".py"))
    positional = arguments[2 : 4 if "test" in script else 3]
    options = arguments[len(positional) + 2 :]
    assert words[words.index("py") :] == ["py", "-u", tool, *positional, "--launcher", "slurm", *options, ""]
    assert words[:4] == ["-p", "part", "--job-name", "job"]
    assert "gpu:2" in words and "--exclusive" in words and "1:00" in words


@pytest.mark.parametrize("script", ["dist_train.sh", "dist_test.sh", "slurm_train.sh", "slurm_test.sh"])
def test_scripts_explain_themselves(script):
    said = subprocess.run(["bash", str(ROOT / "tools" / script)], capture_output=True, text=True)
    assert said.returncode == 2 and f"tools/{script}" in said.stderr


def test_both_ranks_search_for_the_same_slices(small_config, tmp_path):
    """Each sees other data, and so other gradients and other lengths of texts."""
    config = small_config(HOOK + "model = dict(distillation=None)\n", base="quickstart_upop-2x.py")
    run("dist_train.sh", config, "2", "--work-dir", str(tmp_path))
    first, second = rank_states(tmp_path)
    assert first["policy.found"] and (first["policy.scales"] == 0).any()
    for name in first.keys() - {"draw"}:
        assert torch.equal(first[name], second[name]), name
