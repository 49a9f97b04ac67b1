"""Public weights as those of a model: every key of a file is used, left out for a reason, or an error."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from smarttrim_mm.models.checkpoint import list_keys

_LISTED = 4  # changed keys by name; more, by the part of the model


@dataclass
class Conversion:
    """What became of every key.

    Attributes:
        weights: By the backbone's keys, in the backbone's shapes.
        changed: Of these, what was done to the tensors of the file, by the backbone's key.
        left_out: Why nothing was taken from a key, by the file's key.
        initialised: Keys of the backbone that the file has nothing for: they keep what they hold.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    initialised: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Parts of the model and of the file, with their numbers of keys, as a few lines of text."""
        rows = [("used", number, part) for part, number in _by_part(self.weights).items()]
        for what in dict.fromkeys(self.changed.values()):
            keys = [key for key, how in self.changed.items() if how == what]
            named = Counter(keys) if len(keys) <= _LISTED else _by_part(keys)
            rows += [("changed", number, f"{name}: {what}") for name, number in named.items()]
        for reason in dict.fromkeys(self.left_out.values()):
            parts = _by_part(key for key, why in self.left_out.items() if why == reason)
            rows += [("left out", number, f"{part}: {reason}") for part, number in parts.items()]
        rows += [("new", number, f"{part}: initialised, not loaded") for part, number in _by_part(self.initialised).items()]
        return "\n".join([f"{'':<10}{'keys':>5}", *(f"{kind:<10}{number:>5}  {what}" for kind, number, what in rows)])


def sort_keys(
    found: Conversion,
    public: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    unused: Mapping[str, str],
    rename: Callable[[str], str],
) -> list[str]:
    """Fills in what is used and what is left out.

    Args:
        found: To be filled in.
        public: The file's state dict.
        own: The model's.
        unused: By patterns of keys that are left out, why.
        rename: The model's name of a key of the file.

    Returns:
        The keys that nobody expects.
    """
    unexpected = []
    for key, value in public.items():
        mine = rename(key)
        reason = next((why for pattern, why in unused.items() if re.fullmatch(pattern, key)), None)
        if mine in own and isinstance(value, Tensor):
            found.weights[mine] = value
        elif reason is not None:
            found.left_out[key] = reason
        else:
            unexpected.append(key)
    return unexpected


def refuse(
    found: Conversion, own: Mapping[str, Tensor], unexpected: list[str], problems: list[str], kind: str, advice: str
) -> None:
    """Raises unless everything has its place.

    Args:
        found: What became of the keys.
        own: The model's state dict.
        unexpected: Keys that nobody expects.
        problems: What else is wrong, a line each.
        kind: What the file is, for the message.
        advice: What to do, likewise.

    Raises:
        ValueError: With the missing and unexpected keys and the mismatched shapes.
    """
    problems = problems + list_keys("missing", own.keys() - found.weights.keys() - set(found.initialised))
    problems += list_keys("unexpected", unexpected)
    shapes = {key: (tuple(value.shape), tuple(own[key].shape)) for key, value in found.weights.items()}
    problems += list_keys("of another shape", [f"{key} {a}, the model's {b}" for key, (a, b) in shapes.items() if a != b])
    if problems:
        raise ValueError(
            f"This {kind} does not fit the config's model; nothing was loaded.\n" + "\n".join(problems) + f"\n{advice}"
        )


def _by_part(keys: Iterable[str]) -> Counter[str]:
    return Counter(key.split(".")[0] for key in keys)
