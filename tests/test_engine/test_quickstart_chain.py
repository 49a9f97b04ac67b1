"""The quickstart's chain with fake tools that write what the real ones write, in no time."""

import json
import signal
from pathlib import Path

import pytest

from smarttrim_mm.engine import quickstart
from smarttrim_mm.engine.contenders import HOST, PACKED

CONFIGS = Path(__file__).parents[2] / "configs" / "meter"
FAKE_TOOL = """
import json, pathlib, sys

here = pathlib.Path(__file__).parent
name, arguments = pathlib.Path(__file__).stem, sys.argv[1:]
with open(here / "calls", "a") as file:
    file.write(" ".join([name, *arguments]) + "\\n")

def option(flag):
    path = pathlib.Path(arguments[arguments.index(flag) + 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    return path

config = pathlib.Path(arguments[0]).stem.removeprefix("quickstart_")
results = json.loads((here / "results.json").read_text())
if name == "train":
    folder = option("--work-dir")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "iter_4.pth").write_text(config)
    print("Iter(train) [4/4]  eta: 0:00:00")
    if (here / f"crash_{config}").exists():
        sys.exit("power cut")
    (folder / "last_checkpoint").write_text("somewhere/iter_4.pth")
elif name == "calibrate":
    option("--out").write_text(config)
    folder = option("--work-dir")
    folder.mkdir(exist_ok=True)
    note = {"knob": "threshold", "after": {"knob": 0.5, "speedup": 2.02}}
    (folder / "calibration.json").write_text(json.dumps(note))
elif name == "test":
    row = results["dense" if "dense" in config else config]
    answers = {"config": arguments[0], "checkpoint": arguments[1], "predictions": row["predictions"]}
    option("--out").write_text(json.dumps(answers))
    option("--speedup-report").write_text(json.dumps(row["compute"]))
elif name == "benchmark":
    option("--out").write_text(json.dumps(results["benchmark"]))
else:
    for picture in ("pruned_patches.png", "training_curves.png"):
        (option("--out") / picture).parent.mkdir(exist_ok=True)
        (option("--out") / picture).write_text("")
"""


def result(right: int, speedup: float) -> dict:
    predictions = [
        {"question_id": i, "image_id": i, "predicted_answer": "yes" if i < right else "no", "answer": "yes"} for i in range(100)
    ]
    spent = {f"multiply_adds{suffix}": 20 / speedup for suffix in ("", "_p05", "_p95")}
    compute = {**spent, "dense_multiply_adds": 20.0, "speedup": speedup, "kept": {"image.0/image": 1 / speedup}, "heads": {}}
    return {"predictions": predictions, "compute": compute}


def benchmark() -> dict:
    def row(faster: float) -> dict:
        spread = {"median": faster, "q1": faster, "q3": faster}
        return {
            "ms_per_batch": spread,
            "speedup": spread,
            "decided_multiply_adds": 20.0 / faster,
            "executed_multiply_adds": 20.0,
        }

    contenders = {HOST: row(1.0), PACKED: row(0.9), "SmartTrim": row(1.5)}
    results = [
        {"batch_size": size, "threads": 2, "rounds": 9, "dense_multiply_adds": 20.0, "contenders": contenders}
        for size in (1, 32)
    ]
    machine = {"cpu": "a CPU", "torch": "2"}
    return {"policy": "SmartTrim", "results": results, "machine": machine, "load_average": {"before": [0], "after": [0]}}


class FakeRoot:
    """A root folder with fake tools."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tools = root / "tools"
        self.tools.mkdir()
        for name in ("train", "calibrate", "test", "benchmark", "visualize"):
            (self.tools / f"{name}.py").write_text(FAKE_TOOL)
        rows = {
            "dense": result(95, 1.0),
            "smarttrim": result(95, 2.01),
            "local-only": result(94, 2.01),
            "random": result(50, 2.0),
        }
        (self.tools / "results.json").write_text(json.dumps({**rows, "benchmark": benchmark()}))

    def run(self, *arguments: str) -> int:
        return quickstart.main(["--configs", str(CONFIGS), *arguments], tools=self.tools, root=self.root)

    @property
    def calls(self) -> list[str]:
        return (self.tools / "calls").read_text().splitlines()


@pytest.fixture
def fake(tmp_path: Path) -> FakeRoot:
    return FakeRoot(tmp_path)


def short(call: str) -> str:
    """Tool and config of a call."""
    tool, config, *_ = call.split()
    return f"{tool} {Path(config).stem.removeprefix('quickstart_')}"


def test_chain_trains_calibrates_tests_times_draws_and_reports(fake, capsys):
    assert fake.run("--longer") == 0
    assert [short(call) for call in fake.calls] == [
        "train dense",
        "train smarttrim",
        "calibrate smarttrim",
        "train local-only",
        "calibrate local-only",
        "calibrate random",
        "train random",
        "calibrate random",
        "train dense-longer",
        "test dense",
        "test dense-longer",
        "test smarttrim",
        "test local-only",
        "test random",
        "test dense",
        "benchmark smarttrim",
        "visualize smarttrim",
    ]
    folder = fake.root / "work_dirs" / "quickstart"
    report = json.loads((folder / "report.json").read_text())
    assert [target["reached"] for target in report["targets"]] == [True] * 4
    assert "dense-longer" in report["models"]
    assert report["against_smarttrim"]["local-only"]["ties"]
    assert not report["against_smarttrim"]["random"]["ties"]
    assert [stage["name"] for stage in report["stages"]][:3] == ["train_dense", "train_smarttrim", "calibrate_smarttrim"]
    assert report["stages"][0]["command"].startswith("python tools/train.py ")
    assert report["models"]["smarttrim"]["calibration"] == {"knob": "threshold", "value": 0.5, "held_out_speedup": 2.02}
    assert "random dropping" in (folder / "report.md").read_text()
    printed = capsys.readouterr().out
    assert "[stage 17/17" in printed
    assert "| SmartTrim " in printed
    assert "report: work_dirs/quickstart/report.md" in printed


def test_stages_build_on_each_other(fake):
    fake.run()
    calls = fake.calls
    work = "work_dirs/quickstart"
    trained = [call for call in calls if call.startswith("train")]
    assert "load_from" not in trained[0]
    assert f"load_from={work}/dense/iter_4.pth" in trained[1]
    assert f"load_from={work}/dense/iter_4.pth" in trained[2]
    assert f"load_from={work}/calibrated/random-start.pth" in trained[3]
    calibrated = [call for call in calls if call.startswith("calibrate")]
    assert all("--speedup 2 " in call for call in calibrated)
    assert f"{work}/dense/iter_4.pth" in calibrated[2]
    assert f"{work}/random/iter_4.pth" in calibrated[3]
    tested = [call for call in calls if call.startswith("test")]
    assert f"{work}/calibrated/smarttrim.pth" in tested[-1]  # the dense pass of SmartTrim's weights


def test_seed_reaches_trainings_policy_and_benchmark(fake):
    assert fake.run("--seed", "7") == 0
    assert (fake.root / "work_dirs" / "quickstart-seed7" / "report.md").is_file()
    assert all("randomness.seed=7" in call for call in fake.calls if call.startswith("train"))
    assert all("model.policy.seed=7" in call for call in fake.calls if "quickstart_random" in call)
    assert any("--seed 7" in call for call in fake.calls if call.startswith("benchmark"))


def test_signals_are_handled_as_before_afterwards(fake):
    before = signal.getsignal(signal.SIGTERM)
    assert fake.run("--skip-baselines") == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_baselines_can_be_left_out(fake):
    assert fake.run("--skip-baselines", "--work-dir", str(fake.root / "elsewhere")) == 0
    assert {short(call) for call in fake.calls if call.startswith("train")} == {"train dense", "train smarttrim"}
    report = json.loads((fake.root / "elsewhere" / "report.json").read_text())
    assert list(report["models"]) == ["dense", "smarttrim", "dense-pass"]


def test_an_interrupted_quickstart_goes_on_where_it_stopped(fake, capsys):
    (fake.tools / "crash_local-only").touch()
    assert fake.run() == 1
    message = capsys.readouterr().err
    assert "train_local-only" in message
    assert "power cut" in message
    assert "To go on from here, finished stages being kept: python tools/quickstart.py --configs" in message
    before = fake.calls
    assert short(before[-1]) == "train local-only"
    (fake.tools / "crash_local-only").unlink()
    assert fake.run() == 0
    after = fake.calls[len(before) :]
    assert short(after[0]) == "train local-only"
    assert after[0].endswith("--resume")
    assert not any("--resume" in call for call in after[1:])
    assert short(after[1]) == "calibrate local-only"
    assert fake.run() == 0
    assert len(fake.calls) == len(before) + len(after)


def test_another_seed_in_the_same_folder_is_refused(fake, capsys):
    folder = str(fake.root / "one")
    assert fake.run("--work-dir", folder) == 0
    count = len(fake.calls)
    assert fake.run("--work-dir", folder, "--seed", "1") == 1
    message = capsys.readouterr().err
    assert "holds another run of stage 'train_dense' (its command was python tools/train.py" in message
    assert "randomness.seed=0" in message
    assert len(fake.calls) == count


def test_a_smoke_run_is_short_and_says_so(fake, capsys):
    assert fake.run("--smoke") == 0
    assert all("train_cfg.max_iters=4" in call for call in fake.calls if call.startswith("train"))
    assert all("test_dataloader.dataset.num_images=8" in call for call in fake.calls if call.startswith("test"))
    assert "numbers mean nothing" in capsys.readouterr().out
    assert (fake.root / "work_dirs" / "quickstart-smoke" / "report.md").is_file()


def test_a_folder_without_the_configs_is_named(fake, capsys):
    assert quickstart.main(["--configs", str(fake.root)], tools=fake.tools, root=fake.root) == 1
    assert "quickstart_dense.py: no such config" in capsys.readouterr().err


def test_the_best_checkpoint_is_taken_where_the_config_saves_one(tmp_path):
    (tmp_path / "last_checkpoint").write_text("/moved/iter_9.pth")
    assert quickstart.chosen_checkpoint(tmp_path) == tmp_path / "iter_9.pth"
    (tmp_path / "best_vqa_accuracy_iter_5.pth").touch()
    assert quickstart.chosen_checkpoint(tmp_path) == tmp_path / "best_vqa_accuracy_iter_5.pth"
    with pytest.raises(quickstart.StageError, match="holds no checkpoint"):
        quickstart.chosen_checkpoint(tmp_path / "none")
