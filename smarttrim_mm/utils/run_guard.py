"""A work dir belongs to one config: another config's run is refused before anything of the first is touched."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from smarttrim_mm.utils.checkpoint_io import write_atomically

RECORD = "run.json"
_RUN_TIME = {
    "work_dir", "resume", "launcher", "model_wrapper_cfg", "env_cfg", "log_level", "log_processor", "visualizer",
    "vis_backends", "experiment_name", "default_scope", "custom_imports", "gpu_ids",
}  # fmt: skip
_LOADING = {"num_workers", "persistent_workers", "pin_memory", "prefetch_factor"}
_REPORTING = (
    "test_",
    *(f"default_hooks.{name}." for name in ("logger", "timer", "checkpoint", "gates", "finite")),
)
_SHOWN = 12


def comparable_settings(cfg: Config) -> dict[str, Any]:
    """The settings of a config that decide what a training computes and selects, as JSON data.

    Args:
        cfg: The config.

    Returns:
        Dotted name -> value, without what only says where and how fast it runs and how often it reports and saves.
    """
    flat: dict[str, Any] = {}
    _flatten({key: value for key, value in cfg.to_dict().items() if key not in _RUN_TIME}, "", flat)
    return {
        name: value
        for name, value in flat.items()
        if not name.startswith(_REPORTING) and not ("dataloader" in name.split(".")[0] and name.split(".")[-1] in _LOADING)
    }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short name for settings: equal for equal ones, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def differing_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists settings that differ, each as ``name: old -> new``."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = (json.dumps(side[name]) if name in side else "unset" for side in (old, new))
        if before != after:
            lines.append(f"{name}: {_cut(before)} -> {_cut(after)}")
    return lines


def claim_work_dir(work_dir: str | Path, cfg: Config, resuming: bool = False) -> None:
    """Notes in a work dir which config trains there, or refuses if another one has trained there.

    A folder without checkpoints holds nothing to lose and may change hands.

    Args:
        work_dir: The folder; made if missing.
        cfg: The config of the run that is about to start.
        resuming: Whether it resumes; ``load_from`` may then differ, as the weights come from the run's own checkpoint.

    Raises:
        ValueError: If the folder holds the run of another config, or checkpoints of unknown origin.
    """
    work_dir = Path(work_dir)
    record = work_dir / RECORD
    checkpoints = sorted(work_dir.glob("*.pth"))
    settings = comparable_settings(cfg)
    if checkpoints and not record.is_file():
        raise ValueError(
            f"work_dir {str(work_dir)!r} holds {checkpoints[0].name}, but no {RECORD} that tells which config made it; "
            "give another --work-dir"
        )
    if checkpoints:
        held = _read(record)
        ignored = {"load_from"} if resuming else set()
        lines = [line for line in differing_settings(held["settings"], settings) if line.split(": ")[0] not in ignored]
        if lines:
            more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
            raise ValueError(
                f"work_dir {str(work_dir)!r} holds the run of {held['config']} (fingerprint {held['fingerprint']}), and not of "
                f"{cfg.filename} ({fingerprint(settings)}), which differs in: {'; '.join(lines[:_SHOWN])}{more}. Nothing was "
                "written. Give another --work-dir, or undo the differences"
            )
        return
    note = {"config": str(cfg.filename), "fingerprint": fingerprint(settings), "settings": settings}
    write_atomically(record, (json.dumps(note, indent=1, sort_keys=True) + "\n").encode())


def _read(record: Path) -> dict[str, Any]:
    try:
        held = json.loads(record.read_text(encoding="utf-8"))
        return {key: held[key] for key in ("config", "fingerprint", "settings")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{record} is damaged ({error!r}), so its run is unknown; give another --work-dir") from error


def _flatten(value: Any, name: str, flat: dict[str, Any]) -> None:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            _flatten(item, f"{name}.{key}" if name else str(key), flat)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        for index, item in enumerate(value):
            _flatten(item, f"{name}.{index}", flat)
    else:
        flat[name] = json.loads(json.dumps(value, default=str))  # tuples become lists


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
