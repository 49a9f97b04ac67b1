import os
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader
from torch import nn

from smarttrim_mm.utils import checkpoint_io
from smarttrim_mm.utils.checkpoint_io import (
    AtomicLocalBackend,
    CheckpointError,
    UnsafeCheckpointError,
    check_out,
    load_checkpoint_file,
    newest_checkpoint,
    use_safe_loader,
    write_atomically,
)


class Malicious:
    """Unpickled, it would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def save(path: Path, iteration: int = 1, time: str = "20260101_000000", **content) -> Path:
    torch.save({"meta": {"iter": iteration, "time": time}, "state_dict": {"w": torch.arange(1000.0)}, **content}, path)
    return path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_weight(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.find(torch.arange(500.0, 510.0).numpy().tobytes())] ^= 0xFF
    path.write_bytes(data)


def test_reads_plain_data(tmp_path):
    content = load_checkpoint_file(save(tmp_path / "a.pth"))
    assert torch.equal(content["state_dict"]["w"], torch.arange(1000.0))
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_checkpoint_file(tmp_path / "old.pth", mmap=True)["w"].sum() == 2


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("forced", ["0", "1"])
def test_code_is_refused_and_does_not_run(tmp_path, monkeypatch, zipped, forced):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    path, trace = tmp_path / "bad.pth", tmp_path / "trace"
    torch.save({"state_dict": {"w": Malicious(trace)}}, path, _use_new_zipfile_serialization=zipped)
    use_safe_loader()
    for load in (load_checkpoint_file, CheckpointLoader.load_checkpoint):
        with pytest.raises(UnsafeCheckpointError, match=r"posix\.system.*can run code. Nothing was loaded"):
            load(str(path))
    assert not trace.exists()


def test_bare_pickles_are_refused(tmp_path):
    path, trace = tmp_path / "bad.pth", tmp_path / "trace"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps(Malicious(trace), protocol=protocol))
        with pytest.raises(CheckpointError, match=r"bad\.pth"):
            load_checkpoint_file(path)
    assert not trace.exists()


def test_modules_are_refused(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        load_checkpoint_file(tmp_path / "module.pth")


@pytest.mark.parametrize("damage", [truncate, flip_a_weight, lambda path: path.write_bytes(b"<html>404")])
def test_damaged_files_are_refused(tmp_path, damage):
    path = save(tmp_path / "a.pth")
    damage(path)
    with pytest.raises(CheckpointError, match=r"a\.pth \(\d+ bytes\) is truncated, damaged or no checkpoint"):
        load_checkpoint_file(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CheckpointError, match=r"empty\.pth \(0 bytes\)"):
        load_checkpoint_file(tmp_path / "empty.pth")
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        load_checkpoint_file(tmp_path / "tensor.pth")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: no such checkpoint"):
        load_checkpoint_file(tmp_path / "nowhere.pth")


def test_newest_is_found_by_what_the_files_say(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    save(tmp_path / "iter_30.pth", 30, "20260101_000000")  # of an older, longer run in the same folder
    save(tmp_path / "iter_20.pth", 20, "20260102_000001")
    save(tmp_path / "iter_10.pth", 10, "20260102_000001")
    save(tmp_path / "best_acc_iter_25.pth", 25, "20260103_000000")
    torch.save({"state_dict": {}}, tmp_path / "weights.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_10.pth"))
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_20.pth")


@pytest.mark.parametrize("damage", [truncate, flip_a_weight, lambda path: path.write_bytes(b"")])
def test_falls_back_loudly_to_the_newest_readable(tmp_path, monkeypatch, damage):
    said: list[str] = []
    monkeypatch.setattr(checkpoint_io, "_warn", said.append)
    save(tmp_path / "iter_10.pth", 10)
    damage(save(tmp_path / "iter_20.pth", 20))
    (tmp_path / "last_checkpoint").write_text("")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_10.pth")
    assert len(said) == 1 and "newer work could not be read" in said[0] and "iter_20.pth" in said[0]
    damage(tmp_path / "iter_10.pth")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints.*iter_10\.pth.*another --work-dir"):
        newest_checkpoint(tmp_path)


def test_does_not_fall_back_from_foreign_code(tmp_path):
    save(tmp_path / "iter_10.pth", 10)
    save(tmp_path / "iter_20.pth", 20, extra=Malicious(tmp_path / "trace"))
    with pytest.raises(UnsafeCheckpointError, match=r"iter_20\.pth is refused"):
        newest_checkpoint(tmp_path)


def test_follows_the_pointer_out_of_the_folder(tmp_path):
    elsewhere = save(tmp_path / "iter_10.pth", 10)
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    (work_dir / "last_checkpoint").write_text(f"{elsewhere}\n")
    assert newest_checkpoint(work_dir) == str(elsewhere)


def test_writes_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    write_atomically(path, b"first")

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        AtomicLocalBackend().put_text("second", path)
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_places_that_cannot_be_written_to_are_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    check_out("--out", None)
    check_out("--out", tmp_path / "new" / "results.json")
    check_out("--out", tmp_path / "file")
    check_out("--out", tmp_path, folder=True)
    check_out("--out", tmp_path / "new" / "folder", folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(ValueError, match=r"--out is .*, a folder; expected the file to write"):
        check_out("--out", tmp_path)
    for path, folder in (
        (tmp_path / "file" / "a" / "b.json", False),
        (tmp_path / "file", True),
        (tmp_path / "file" / "a", True),
    ):
        with pytest.raises(ValueError, match=r"--vis is .*file' is a file; expected a folder there"):
            check_out("--vis", path, folder=folder)
