"""The machine that something was timed on: what it is, how busy it is, which versions ran, and how to wait for it."""

import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

_PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "mmengine": "mmengine",
    "mmpretrain": "mmpretrain",
    "lavis": "salesforce-lavis",
    "numpy": "numpy",
}


def machine(device: torch.device) -> dict[str, Any]:
    """What the times depend on beside the model."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    found = {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device.type,
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def versions() -> dict[str, str | None]:
    """Versions of the packages that a model may run on; None: not installed."""
    found: dict[str, str | None] = {}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def load() -> list[float]:
    """The load averages of the machine, over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def in_words(threads: int) -> str:
    """A number of threads."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def synchronizer(model: nn.Module) -> Callable[[], None]:
    """What waits until the model's device is idle."""
    device = next(model.parameters()).device
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []
