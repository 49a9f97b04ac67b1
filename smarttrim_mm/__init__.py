"""smarttrim_mm: per-instance, per-layer trimming of vision-language models for mmengine, mmpretrain and LAVIS."""

from smarttrim_mm import compat  # noqa: F401  (first: torchvision must find its operators)
from smarttrim_mm.version import __version__

__all__ = ["__version__"]
