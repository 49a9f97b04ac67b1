"""smarttrim_mm: per-instance, per-layer trimming of vision-language models for mmengine, mmpretrain and LAVIS."""

from smarttrim_mm import compat  # noqa: F401, I001  (first: torchvision must find its operators)

from mmengine.config.utils import MODULE2PACKAGE

from smarttrim_mm.version import __version__

MODULE2PACKAGE[__name__] = __name__  # mmengine reads `PACKAGE::CONFIG` from the packages of this list only

__all__ = ["__version__"]
