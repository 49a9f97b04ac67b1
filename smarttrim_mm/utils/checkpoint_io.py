"""Reading and writing checkpoints: a file never runs code, is never half written, and is whole or refused."""

import argparse
import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_dist_info
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

# What Lightning's checkpoints hold besides tensors and numbers, and what is read in its place: a plain container, or an empty
# class where only the name is stored (Lightning before 1.5 keys the state of callbacks by their class). The libraries
# themselves are never imported.
_PLAIN = {
    "argparse.Namespace": argparse.Namespace,
    "sacred.config.custom_containers.ReadOnlyDict": dict,
    "sacred.config.custom_containers.ReadOnlyList": list,
    **{f"{package}.utilities.parsing.AttributeDict": dict for package in ("pytorch_lightning", "lightning.pytorch")},
    "lightning.fabric.utilities.data.AttributeDict": dict,
    "lightning_fabric.utilities.data.AttributeDict": dict,
    **{
        f"pytorch_lightning.callbacks.{module}.{name}": type(name, (), {})
        for module, name in (("model_checkpoint", "ModelCheckpoint"), ("early_stopping", "EarlyStopping"))
    },
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that asks for more than plain data."""


def load_checkpoint_file(path: str | os.PathLike, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Reads a checkpoint without running any code from it, and checks that it is whole.

    Containers and names that Lightning writes are read as plain ones.

    Args:
        path: A local file written by ``torch.save``.
        map_location: As for ``torch.load``.
        mmap: Leave the tensors on the disk until they are read: enough to look at names and numbers.

    Returns:
        The checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeCheckpointError: If it needs anything but tensors, numbers, strings and containers of them.
        CheckpointError: If it is truncated, damaged, or no checkpoint.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; check the path, or train first")
    _check_archive(path)
    checkpoint = _load(path, map_location, mmap)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}; expected a dictionary of weights")
    return checkpoint


def newest_checkpoint(work_dir: str | os.PathLike) -> str | None:
    """Finds the checkpoint to resume from: the newest that can be read, with a loud word for every one that cannot.

    Args:
        work_dir: Folder of the run.

    Returns:
        Its path; None if the folder holds no checkpoint of a training.

    Raises:
        UnsafeCheckpointError: If one of them wants to run code: somebody else wrote it.
        CheckpointError: If there are checkpoints and none can be read.
    """
    folder = Path(work_dir)
    found = {path.resolve(): path for path in folder.glob("*.pth") if not path.name.startswith("best_")}
    pointer = folder / "last_checkpoint"
    named = Path(pointer.read_text(encoding="utf-8").strip()) if pointer.is_file() else None
    if named is not None and named.is_file():
        found.setdefault(named.resolve(), named)
    ages, broken = [], []
    for path in found.values():
        try:
            meta = _load(path, "cpu", mmap=True).get("meta", {})
            if "iter" in meta:
                ages.append((meta.get("time", ""), meta["iter"], str(path)))
        except UnsafeCheckpointError:
            raise
        except CheckpointError as error:
            broken.append(str(error))
    for *_, candidate in sorted(ages, reverse=True):
        try:
            _check_archive(Path(candidate))
        except CheckpointError as error:
            broken.append(str(error))
            continue
        if broken:
            _warn(f"resuming from {candidate}, as newer work could not be read: {'; '.join(broken)}")
        return candidate
    if broken:
        raise CheckpointError(
            f"none of the checkpoints in {work_dir} can be read: {'; '.join(broken)}. Start again in another --work-dir"
        )
    return None


def use_safe_loader() -> None:
    """Lets every loading by mmengine in this process go through :func:`load_checkpoint_file`.

    mmengine leaves ``weights_only`` to torch's default, which an environment variable can turn off, and which is off for
    files from the web.
    """
    CheckpointLoader.register_scheme(prefixes="", loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(prefixes=("http://", "https://"), loader=load_from_http, force=True)


def load_from_local(filename: str, map_location: Any) -> dict[str, Any]:
    """The loader of local files for mmengine."""
    return load_checkpoint_file(filename, "cpu" if map_location is None else map_location)


def load_from_http(filename: str, map_location: Any = None) -> dict[str, Any]:
    """The loader of files from the web for mmengine: each is downloaded once, into torch's hub folder."""
    target = Path(torch.hub.get_dir()) / "checkpoints" / filename.rsplit("/", 1)[-1]
    rank, world_size = get_dist_info()
    if rank == 0 and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(filename, str(target))
    if world_size > 1:
        torch.distributed.barrier()
    return load_from_local(str(target), map_location)


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file whole or not at all: whoever reads it meanwhile, or after a crash, sees the old one or the new one.

    Args:
        path: The file; its folder is made.
        data: Its content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # a full disk, or an interrupt


def check_out(argument: str, path: str | os.PathLike | None, *, folder: bool = False) -> None:
    """Refuses, before any work is done, a path that its results cannot be written to.

    Args:
        argument: Name of the argument, ``'--out'``.
        path: What is to be written; None: nothing.
        folder: Whether it is a folder for files.

    Raises:
        ValueError: If a folder is in a file's place, or a file in a folder's.
    """
    if path is None:
        return
    if not folder and Path(path).is_dir():
        raise ValueError(f"{argument} is {str(path)!r}, a folder; expected the file to write: name one in it")
    above = Path(path).absolute() if folder else Path(path).absolute().parent
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise ValueError(
            f"{argument} is {str(path)!r}, but {str(above)!r} is a file; expected a folder there: give another path"
        )


@register_backend("atomic_local")
class AtomicLocalBackend(LocalBackend):
    """mmengine's backend of local files, with writes that cannot be cut in the middle."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes bytes to a file, whole or not at all."""
        write_atomically(filepath, obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Writes text to a file, whole or not at all."""
        write_atomically(filepath, obj.encode(encoding))


def _check_archive(path: Path) -> None:
    """Refuses damaged bytes, which torch would load as wrong weights."""
    if not zipfile.is_zipfile(path):
        return  # the format before torch 1.6 has no checksums; a truncated file fails in the reading
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise CheckpointError(_corrupt(path, error)) from error
    if damaged is not None:
        raise CheckpointError(_corrupt(path, f"the checksum of {damaged} is wrong"))


def _load(path: Path, map_location: Any, mmap: bool = False) -> Any:
    try:
        mmap = mmap and zipfile.is_zipfile(path)
        with safe_globals([(plain, name) for name, plain in _PLAIN.items()]):
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        wanted = _unsafe_globals(path, error)
        if wanted:
            raise UnsafeCheckpointError(
                f"{path} is refused: besides weights it wants to load {', '.join(wanted)}, and that can run code. Nothing was "
                "loaded. Ask its author for a file with weights only"
            ) from None
        raise CheckpointError(_corrupt(path, str(error).splitlines()[0])) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(_corrupt(path, error)) from error


def _unsafe_globals(path: Path, error: Exception) -> list[str]:
    """What a file wants to import: from its pickle, or, for an old format, from torch's words."""
    if zipfile.is_zipfile(path):
        return sorted(set(get_unsafe_globals_in_checkpoint(str(path))) - _PLAIN.keys())
    marks = ("GLOBAL ", "global ")
    words = [str(error).split(mark, 1)[1].split() for mark in marks if mark in str(error)]
    return [words[0][0].strip(".,`")] if words and words[0] else []


def _corrupt(path: Path, reason: object) -> str:
    said = str(reason).strip().splitlines()
    detail = said[0] if said else type(reason).__name__
    size = path.stat().st_size
    return f"{path} ({size} bytes) is truncated, damaged or no checkpoint ({detail}): copy it again, or use an older one"


def _warn(message: str) -> None:
    print_log(message, logger="current", level=logging.WARNING)
