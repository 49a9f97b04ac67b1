"""LAVIS's functions with other collaborators."""

from collections.abc import Callable
from types import FunctionType
from typing import Any


def rebound(function: Any, **names: object) -> Callable[..., Any]:
    """A function of LAVIS that finds something else under some of the names of its module; LAVIS itself stays as it is.

    Args:
        function: The function.
        **names: What it finds, by the name it looks up.

    Raises:
        KeyError: If its module has no such name.
    """
    unknown = sorted(names.keys() - function.__globals__.keys())
    if unknown:
        raise KeyError(f"{function.__module__} has no {', '.join(unknown)}: this is another LAVIS than 1.0.2")
    found = FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__, function.__closure__
    )
    found.__kwdefaults__ = function.__kwdefaults__
    return found
