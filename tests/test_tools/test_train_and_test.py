"""``tools/train.py`` and ``tools/test.py`` in this process."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from smarttrim_mm import cli
from smarttrim_mm.datasets.easy_vqa import EasyVQA
from smarttrim_mm.utils.checkpoint_io import CheckpointError, UnsafeCheckpointError


def weights(path: Path) -> dict:
    return torch.load(path, weights_only=True)["state_dict"]


def assert_equal_weights(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def log_of(work_dir: Path) -> str:
    return "".join(path.read_text() for path in sorted(work_dir.glob("*/*.log")))


@pytest.fixture(scope="module")
def straight(small_config, tmp_path_factory) -> Path:
    """A training of four iterations without an interruption."""
    work_dir = tmp_path_factory.mktemp("straight")
    cli.train([small_config(), "--work-dir", str(work_dir)])
    return work_dir


@pytest.fixture
def interrupted(straight, tmp_path) -> Path:
    """The same work dir as a kill after two iterations leaves it."""
    work_dir = tmp_path / "interrupted"
    work_dir.mkdir()
    for name in ("iter_2.pth", "run.json"):
        shutil.copy(straight / name, work_dir)
    return work_dir


def test_resume_finds_the_checkpoint_and_is_exact(small_config, straight, interrupted):
    cli.train([small_config(), "--work-dir", str(interrupted), "--resume"])
    assert_equal_weights(weights(straight / "iter_4.pth"), weights(interrupted / "iter_4.pth"))


def test_resume_falls_back_from_a_damaged_checkpoint(small_config, straight, interrupted):
    damaged = (straight / "iter_4.pth").read_bytes()[:-1000]
    (interrupted / "iter_4.pth").write_bytes(damaged)
    (interrupted / "last_checkpoint").write_text(str(interrupted / "iter_4.pth"))
    cli.train([small_config(), "--work-dir", str(interrupted), "--resume"])
    assert_equal_weights(weights(straight / "iter_4.pth"), weights(interrupted / "iter_4.pth"))


def test_resume_from_a_file_into_another_folder(small_config, straight, tmp_path):
    cli.train([small_config(), "--work-dir", str(tmp_path), "--resume", str(straight / "iter_2.pth")])
    assert_equal_weights(weights(straight / "iter_4.pth"), weights(tmp_path / "iter_4.pth"))


def test_resume_with_nothing_to_resume_from_starts_at_the_beginning(small_config, straight, tmp_path):
    cli.train([small_config(), "--work-dir", str(tmp_path), "--resume"])
    assert "holds no checkpoint to resume from: training starts at the beginning" in log_of(tmp_path)
    assert_equal_weights(weights(straight / "iter_4.pth"), weights(tmp_path / "iter_4.pth"))


def test_a_run_without_a_seed_resumes_with_the_one_it_drew(small_config, tmp_path):
    options = ["--cfg-options", "randomness.seed=None"]
    first, second = tmp_path / "first", tmp_path / "second"
    cli.train([small_config(), "--work-dir", str(first), *options])
    cli.train([small_config(), "--work-dir", str(second), "--resume", str(first / "iter_2.pth"), *options])
    assert_equal_weights(weights(first / "iter_4.pth"), weights(second / "iter_4.pth"))


def test_no_validate_changes_nothing_else(small_config, straight, tmp_path):
    runner = cli.train([small_config(), "--work-dir", str(tmp_path), "--no-validate"])
    assert runner.val_loop is None
    assert_equal_weights(weights(straight / "iter_4.pth"), weights(tmp_path / "iter_4.pth"))


def test_weights_alone_cannot_be_resumed_from(small_config, straight, tmp_path):
    torch.save({"state_dict": weights(straight / "iter_4.pth")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"no meta, optimizer, message_hub; to start.*load_from=.*weights\.pth"):
        cli.train([small_config(), "--work-dir", str(tmp_path / "run"), "--resume", str(tmp_path / "weights.pth")])


def test_another_config_is_refused_before_anything_is_written(small_config, straight):
    before = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
    other = small_config("model = dict(budget=dict(speedup=3.0))")
    for resume in ([], ["--resume"]):
        with pytest.raises(ValueError, match=r"holds the run of .*small_.*model\.budget\.speedup: 2\.\d+ -> 3\.0"):
            cli.train([other, "--work-dir", str(straight), *resume])
    assert {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()} == before


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


@pytest.mark.parametrize("use", ["load_from", "resume", "test"])
def test_unfit_checkpoints_are_refused_before_anything_is_written(small_config, tmp_path, use):
    evil, cut = tmp_path / "evil.pth", tmp_path / "cut.pth"
    torch.save({"state_dict": Malicious(), "meta": {}}, evil)
    cut.write_bytes(evil.read_bytes()[:-100])
    missing = tmp_path / "missing.pth"
    for path, error in ((evil, UnsafeCheckpointError), (cut, CheckpointError), (missing, FileNotFoundError)):
        work_dir = ["--work-dir", str(tmp_path / "run")]
        with pytest.raises(error, match=path.name):
            if use == "test":
                cli.test([small_config(), str(path), *work_dir])
            elif use == "resume":
                cli.train([small_config(), *work_dir, "--resume", str(path)])
            else:
                cli.train([small_config(), *work_dir, "--cfg-options", f"load_from={path}"])
    assert not (tmp_path / "run").exists()


def test_amp(small_config, tmp_path):
    runner = cli.train([small_config(), "--work-dir", str(tmp_path), "--amp", "--no-validate"])
    expected = "AmpOptimWrapper" if torch.cuda.is_available() else "AutocastOptimWrapper"
    assert type(runner.optim_wrapper).__name__ == expected
    state = weights(tmp_path / "iter_4.pth")
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values() if value.is_floating_point())


def test_amp_leaves_other_wrappers_alone(small_config, tmp_path):
    config = small_config("optim_wrapper = dict(type='Mine')")
    with pytest.raises(ValueError, match=r"--amp cannot replace optim_wrapper\.type 'Mine'"):
        cli.train([config, "--work-dir", str(tmp_path), "--amp"])


def test_auto_scale_lr(small_config, tmp_path):
    config = small_config("auto_scale_lr = dict(base_batch_size=4)\nparam_scheduler = []")
    runner = cli.train([config, "--work-dir", str(tmp_path), "--auto-scale-lr", "--no-validate"])
    usual = Config.fromfile(config).optim_wrapper.optimizer.lr
    assert runner.optim_wrapper.get_lr()["lr"][0] == pytest.approx(usual / 2)  # batches of 2
    with pytest.raises(ValueError, match="base_batch_size"):
        cli.enable_auto_scale_lr(Config({"auto_scale_lr": {}}))


def test_reports(small_config, straight, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = small_config("work_dir = None")
    answers, report = tmp_path / "out" / "answers.json", tmp_path / "out" / "speed.json"
    metrics = cli.test([config, str(straight / "iter_4.pth"), "--out", str(answers), "--speedup-report", str(report)])
    assert (tmp_path / "work_dirs" / Path(config).stem / "test").is_dir()
    written = json.loads(answers.read_text())
    assert written["metrics"] == metrics and written["config"] == config
    asked = written["predictions"]
    right = [record["predicted_answer"] == record["answer"] for record in asked]
    assert sum(right) / len(right) == pytest.approx(metrics["vqa/accuracy"])
    assert len({record["question_id"] for record in asked}) == len(asked)
    spent = sum(record["multiply_adds"] for record in asked) / len(asked) / 1e6
    assert spent == pytest.approx(metrics["compute/multiply_adds"], rel=1e-4)
    assert json.loads(report.read_text())["samples"] == len(asked)


def test_a_report_needs_no_metric_in_the_config(small_config, straight, tmp_path):
    config = small_config("test_evaluator = [dict(type='VQAAccuracy')]")
    report = tmp_path / "speed.json"
    metrics = cli.test([config, str(straight / "iter_4.pth"), "--work-dir", str(tmp_path), "--speedup-report", str(report)])
    assert json.loads(report.read_text())["speedup"] == metrics["compute/speedup"]


def test_an_untrained_policy_is_refused(small_config, straight, tmp_path):
    dense = {name: value for name, value in weights(straight / "iter_4.pth").items() if name.startswith("backbone.")}
    torch.save({"state_dict": dense}, tmp_path / "dense.pth")
    with pytest.raises(ValueError, match=r"dense\.pth has no weights 'policy\.\*' for the SmartTrim.*train it first"):
        cli.test([small_config(), str(tmp_path / "dense.pth"), "--work-dir", str(tmp_path)])
    metrics = cli.test([small_config(base="quickstart_dense.py"), str(tmp_path / "dense.pth"), "--work-dir", str(tmp_path)])
    assert metrics["compute/speedup"] == pytest.approx(1.0)
    cli.check_policy_weights(torch.nn.Linear(1, 1), [], "any.pth")


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_answers_than_the_heads_are_refused_before_training(small_config, tmp_path, split):
    answers = Path(EasyVQA(split="test").ann_file).parents[1] / "answers.txt"
    more = [*answers.read_text().split(), "purple"]
    config = small_config(f"{split}_dataloader['dataset']['metainfo'] = dict(classes={more})")
    message = (
        rf"{split}_dataloader\.dataset is easy-VQA with 14 answers, and the model's head has 13: .*backbone\.num_classes=14"
    )
    with pytest.raises(ValueError, match=message):
        cli.train([config, "--work-dir", str(tmp_path)])
    assert not list(tmp_path.glob("*.pth")) and "Iter(train)" not in log_of(tmp_path)


def test_other_answers_than_the_heads_are_refused_before_the_weights_are_loaded(small_config, straight, tmp_path):
    config = small_config("model = dict(backbone=dict(num_classes=7))")
    with pytest.raises(ValueError, match=r"test_dataloader\.dataset is easy-VQA with 13 answers, and the model's head has 7"):
        cli.test([config, str(straight / "iter_4.pth"), "--work-dir", str(tmp_path)])


def test_another_architecture_is_refused(small_config, straight, tmp_path):
    config = small_config("model = dict(backbone=dict(vision=dict(layers=3)))")
    with pytest.raises(ValueError, match="backbone"):
        cli.test([config, str(straight / "iter_4.pth"), "--work-dir", str(tmp_path)])


def test_a_missing_config():
    with pytest.raises(FileNotFoundError, match=r"config 'configs/none\.py': no such file"):
        cli.train(["configs/none.py"])


@pytest.mark.parametrize(
    "parser, options",
    [
        (cli.train_parser, ["--resume", "--amp", "--no-validate", "--auto-scale-lr"]),
        (cli.test_parser, ["--out", "--speedup-report"]),
    ],
)
def test_help(parser, options):
    words = parser().format_help()
    for option in [*options, "--work-dir", "--cfg-options", "--launcher"]:
        assert option in words


def test_table():
    metrics = {
        "compute/multiply_adds": 10.0,
        "compute/multiply_adds_p05": 8.0,
        "compute/multiply_adds_p95": 12.5,
        "compute/executed_multiply_adds": 4.0,
        "compute/dense_multiply_adds": 20.0,
        "compute/speedup": 2.0,
        "compute/kept/image.0/image": 0.5,
        "vqa/accuracy": 1.0,
    }
    lines = cli.speedup_table(metrics).splitlines()
    assert lines[1].split() == ["decided", "10.000", "8.000", "12.500"]
    assert lines[4].split() == ["dense", "/", "decided", "2.000"]
    assert lines[5] == "kept image .50"
