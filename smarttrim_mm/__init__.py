"""smarttrim_mm: per-instance, per-layer trimming of vision-language models for mmengine, mmpretrain and LAVIS."""

from smarttrim_mm import compat  # noqa: F401, I001  (first: torchvision must find its operators)

from typing import TYPE_CHECKING, Any

from smarttrim_mm.version import __version__

if TYPE_CHECKING:
    from smarttrim_mm.inferencer import TrimInferencer

__all__ = ["TrimInferencer", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports the inferencer when it is asked for: it needs all of mmpretrain, which takes seconds."""
    if name != "TrimInferencer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from smarttrim_mm.inferencer import TrimInferencer

    return TrimInferencer
