"""Lets torchvision be imported beside a CPU-only torch.

The torchvision wheel of PyPI is linked against CUDA libraries. On a CPU-only torch its operators cannot be loaded, and
``import torchvision`` fails with ``operator torchvision::nms does not exist``. Declaring the two schemas is enough for
everything that this package and its hosts use; calling the operators still fails, as it must. On a CUDA or ROCm build of
torch, or where torchvision's own library loads, nothing is done (a second declaration would abort the process).
"""

import importlib.util
import pathlib

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: torch.library.Library | None = None


def _native_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # no torchvision: nothing to repair
    for library in sorted(pathlib.Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
            return True
        except OSError:
            continue
    return False


def declare_torchvision_operators() -> bool:
    """Declares ``torchvision::nms`` and ``::qnms`` where they cannot be loaded.

    Returns:
        True if the schemas were declared by this call.
    """
    global _declared
    if _declared is not None or torch.version.cuda is not None or torch.version.hip is not None:
        return False
    if hasattr(torch.ops.torchvision, "nms") or _native_operators_load():
        return False
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms" + _SCHEMA)
    library.define("qnms" + _SCHEMA)
    _declared = library  # the schemas live as long as this object
    return True


declare_torchvision_operators()
