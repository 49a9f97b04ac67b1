"""Chains of scripts that write a file and note that they ran."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from smarttrim_mm.engine.stages import Chain, ProgressBars, Stage, StageError, fingerprint, shown_path

TOOL = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
with open({calls!r}, "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
folder.mkdir(parents=True, exist_ok=True)
(folder / "iter_1.pth").write_text("weights")
print("01/01 00:00:00 - mmengine - INFO - Iter(train) [1/2]  lr: 1.0e-3  eta: 0:00:01  time: 0.1  loss: 2.5")
print("01/01 00:00:00 - mmengine - INFO - something else")
if pathlib.Path({crash!r}).exists():
    print("the cause")
    sys.exit(3)
(folder / "done.txt").write_text("done")
"""


class Bench:
    """A folder with a fake tool under two names, and a chain of a training and something that uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.crash = folder / "crash"
        self.calls_file = folder / "calls"
        for name in ("train.py", "use.py"):
            tool = TOOL.format(
                calls=str(self.calls_file), crash=str(self.crash if name == "train.py" else folder / "crash_use")
            )
            (folder / name).write_text(tool)
        self.settings = {"lr": 0.1}
        self.out = io.StringIO()

    def chain(self) -> Chain:
        training, used = self.folder / "training", self.folder / "used"
        stages = [
            Stage(
                "train_it", "train it", "train.py", lambda: [str(training)], self.settings,
                outputs=(training / "done.txt",), training=training,
            ),
            Stage(
                "use_it", "use it", "use.py", lambda: [str(used)], {}, lambda: [training / "done.txt"],
                outputs=(used / "done.txt",),
            ),
        ]  # fmt: skip
        return Chain(stages, folder=self.folder / "work", tools=self.folder, root=self.folder, rerun="again", out=self.out)

    def run(self) -> list[dict]:
        return self.chain().run()

    @property
    def calls(self) -> list[str]:
        return [line.replace(f"{self.folder}/", "") for line in self.calls_file.read_text().splitlines()]

    def marker(self, name: str) -> dict:
        return json.loads((self.folder / "work" / "stages" / f"{name}.json").read_text())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_finished_stages_are_not_redone(bench):
    first = bench.run()
    assert bench.calls == ["training", "used"]
    assert [marker["name"] for marker in first] == ["train_it", "use_it"]
    assert first[0]["command"] == f"python train.py {bench.folder / 'training'}"
    assert bench.run() == first
    assert bench.calls == ["training", "used"]
    assert "[stage 2/2" in bench.out.getvalue()
    assert "use it: done before (0:0" in bench.out.getvalue()


def test_an_interrupted_training_is_resumed(bench):
    bench.crash.touch()
    with pytest.raises(StageError):
        bench.run()
    assert bench.marker("train_it")["status"] == "started"
    bench.crash.unlink()
    bench.run()
    assert bench.calls == ["training", "training --resume", "used"]
    assert bench.marker("train_it")["command"] == f"python train.py {bench.folder / 'training'}"  # without --resume


def test_a_failure_shows_the_end_of_the_log_and_what_to_do(bench):
    bench.crash.touch()
    with pytest.raises(StageError) as caught:
        bench.run()
    message = str(caught.value)
    assert message.startswith("stage 1/2 (train_it: train it) failed: exit code 3. The end of work/logs/train_it.log:")
    assert "  | the cause" in message
    assert f"This stage alone: python train.py {bench.folder / 'training'}" in message
    assert message.endswith("To go on from here, finished stages being kept: again")


def test_a_tool_without_its_output_has_failed(bench):
    (bench.folder / "use.py").write_text("print('nothing')")
    with pytest.raises(StageError, match=r"ended well but left no .*used/done\.txt"):
        bench.run()


def test_a_changed_input_or_a_lost_output_is_made_anew(bench):
    bench.run()
    (bench.folder / "training" / "done.txt").write_text("other")
    bench.run()
    assert bench.calls == ["training", "used", "used"]
    (bench.folder / "used" / "done.txt").unlink()
    bench.run()
    assert bench.calls == ["training", "used", "used", "used"]


def test_a_training_of_other_settings_is_refused_and_kept(bench):
    bench.run()
    bench.settings = {"lr": 0.2}
    with pytest.raises(
        StageError, match=r"training holds another run of stage 'train_it' \(settings differ: lr: 0\.1 -> 0\.2\)"
    ):
        bench.run()
    assert bench.calls == ["training", "used"]
    assert (bench.folder / "training" / "iter_1.pth").read_text() == "weights"


def test_a_training_of_unknown_origin_is_refused(bench):
    (bench.folder / "training").mkdir()
    (bench.folder / "training" / "iter_9.pth").write_text("somebody's")
    with pytest.raises(StageError, match="not begun by this chain"):
        bench.run()


def test_a_damaged_marker_counts_as_none(bench):
    bench.run()
    (bench.folder / "work" / "stages" / "use_it.json").write_text("{")
    bench.run()
    assert bench.calls == ["training", "used", "used"]


def test_console_shows_progress_and_the_log_everything(bench):
    bench.run()
    shown = bench.out.getvalue()
    line = next(line for line in shown.split("\n") if "training" in line)  # of train.py, as a bar
    assert line.split("\r")[-1].rstrip() == "  training [##########          ] 1/2, 0:00 elapsed  loss 2.5"
    assert "something else" in (bench.folder / "work" / "logs" / "train_it.log").read_text()
    assert shown.count("something else") == 1  # of use.py, which draws bars of its own


def test_bars_follow_training_and_validation(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("smarttrim_mm.engine.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    bars = ProgressBars(out)
    for second, line in enumerate(
        [
            "INFO - Iter(train) [ 50/200]  lr: 1e-3  eta: 0:06:00  loss: 1.50  loss_task: 1.20  accuracy: 0.40  kept image .9",
            "INFO - Iter(train) [100/200]  lr: 1e-3  eta: 0:05:00  loss: 1.10  loss_task: 1.00  accuracy: 0.50  speedup: 1.10",
            "INFO - Saving checkpoint",
            "INFO - Iter(val) [10/13]    eta: 0:00:00  time: 0.1",
            "INFO - Iter(val) [13/13]    vqa/accuracy: 0.61  vqa/accuracy_yes_no: 0.7  compute/speedup: 1.20",
            "INFO - Iter(train) [150/200]  loss: 1.00",
            "INFO - Epoch(train) [2][ 200/200]  loss: 0.90",
        ]
    ):
        now[0] = 10.0 * second
        bars(line[:20])  # lines come in pieces
        bars(line[20:] + "\n")
    bars.close()
    drawn = [line.split("\r")[-1].rstrip() for line in out.getvalue().split("\n")[:-1]]
    assert drawn == [
        "  training [##########          ] 100/200, 0:30 elapsed  loss 1.10  accuracy 0.50  speedup 1.10",
        "  validating [####################] 13/13, 0:10 elapsed  accuracy 0.61  speedup 1.20",
        "  training [####################] 200/200, 0:10 elapsed  loss 0.90",
    ]
    assert "100/200, 0:10 elapsed, ETA 0:20  loss 1.10  accuracy 0.50  speedup 1.10" in out.getvalue()


def test_a_tool_is_ended_with_the_chain(bench):
    (bench.folder / "train.py").write_text("import time\nprint('Iter(train) [1/9] ', flush=True)\ntime.sleep(600)")

    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            if "1/9" in text:
                raise KeyboardInterrupt
            return super().write(text)

    bench.out = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    listed = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"{sys.executable} train.py {bench.folder / 'training'}" not in listed
    assert bench.marker("train_it")["status"] == "started"


def test_fingerprint_follows_command_settings_and_inputs(tmp_path):
    file = tmp_path / "input"
    file.write_text("a")

    def of(command: str = "x", settings: dict | None = None) -> str:
        return fingerprint(Stage("s", "s", "t.py", list, settings or {"a": 1, "b": 2}, lambda: [file]), [command])

    first = of()
    assert of(settings={"b": 2, "a": 1}) == first
    assert of("y") != first
    assert of(settings={"a": 1, "b": 3}) != first
    file.write_text("b")
    assert of() != first


def test_paths_are_shown_relative_to_the_root():
    assert shown_path(Path("/root/a/b"), Path("/root")) == "a/b"
    assert shown_path(Path("/other/b"), Path("/root")) == "/other/b"
