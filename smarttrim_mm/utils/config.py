"""Reading a config, for every tool alike."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope


def read_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Reads a config and makes its scope the default one.

    Args:
        path: The file.
        options: Settings to change, by dotted name.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"config {path!r}: no such file; see configs/")
    cfg = Config.fromfile(path)
    if options:
        cfg.merge_from_dict(dict(options))
    init_default_scope(cfg.get("default_scope", "smarttrim_mm"))
    return cfg
