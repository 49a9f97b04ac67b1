from typing import Any

from smarttrim_mm.models.conversion import Conversion


def load_public(host: Any, path: str) -> Conversion:
    raise NotImplementedError
