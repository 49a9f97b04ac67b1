"""LAVIS's own models, trimmed, in LAVIS's registry.

Importing this registers ``smarttrim_<arch>`` for every architecture of
:data:`~smarttrim_mm.registry.LAVIS_ARCHS`, each a subclass of LAVIS's own class, and the runner ``smarttrim_runner``.
"""

from smarttrim_mm.backbones.lavis_host import import_lavis
from smarttrim_mm.registry import LAVIS_ARCHS, import_submodules

registry = import_lavis("lavis").registry

import_submodules(__name__, __path__)

from smarttrim_mm.lavis.model import TrimmedModel, trimmed_class  # noqa: E402
from smarttrim_mm.lavis.runner import Runner  # noqa: E402

__all__ = ["Runner", "TrimmedModel"]

LAVIS_ARCHS.import_from_location()
for _arch, _adapter in LAVIS_ARCHS.module_dict.items():
    _class = trimmed_class(_arch, _adapter, _adapter.lavis_class(_arch))
    if _class is not None:
        _class.__module__ = __name__
        globals()[_class.__name__] = registry.register_model(f"smarttrim_{_arch}")(_class)
