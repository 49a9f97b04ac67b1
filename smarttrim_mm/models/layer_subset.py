"""Starts a model of fewer layers from chosen layers of a deeper one, by the host's names of its parameters."""

import re
from collections.abc import Iterable, Mapping, Sequence

from mmengine.logging import print_log
from torch import Tensor, nn

from smarttrim_mm.models.checkpoint import backbone_weights, check_state_dict


def load_layers(backbone: nn.Module, checkpoint: str, layers: Mapping[str, Sequence[int]]) -> None:
    """Loads weights of a deeper backbone into a shallower one, all or nothing.

    Args:
        backbone: The module to load into.
        checkpoint: One of our checkpoints, of a backbone that differs in its numbers of layers only.
        layers: By the name of each list of layers that is shortened, the numbers of the checkpoint's layers that are kept.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a list or layer is unknown, their number is not the backbone's, or what remains is of another
            architecture.
    """
    weights = choose_layers(backbone_weights(checkpoint), backbone.state_dict(), layers)
    check_state_dict(backbone, weights)
    backbone.load_state_dict(weights)
    kept = "; ".join(f"{name} {', '.join(map(str, numbers))}" for name, numbers in layers.items())
    print_log(f"{type(backbone).__name__} starts from {checkpoint}, of which it keeps the layers {kept}", logger="current")


def choose_layers(weights: Mapping[str, Tensor], own: Iterable[str], layers: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights of a model of which only some layers are kept, numbered anew; other weights as they are.

    Args:
        weights: Of the deeper model, by key.
        own: Keys of the shallower model.
        layers: See :func:`load_layers`.

    Raises:
        ValueError: If a list or layer is unknown, one is chosen twice, or the number of layers is not the shallower model's.
    """
    theirs, ours = _layer_lists(weights), _layer_lists(own)
    for name, numbers in layers.items():
        if name not in theirs:
            raise ValueError(f"init_layers names {name!r}; the teacher's lists of layers are {sorted(theirs)}")
        beyond = sorted(set(numbers) - theirs[name])
        if beyond:
            raise ValueError(f"init_layers names layers {beyond} of {name!r}; the teacher has 0 to {max(theirs[name])}")
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"init_layers[{name!r}] is {list(numbers)}; expected each layer once")
        depth = len(ours.get(name, ()))
        if len(numbers) != depth:
            raise ValueError(
                f"init_layers[{name!r}] chooses {len(numbers)} layers, the model has {depth} there; choose as many, or change "
                "model.backbone"
            )
    place = {f"{name}.{old}": f"{name}.{new}" for name, numbers in layers.items() for new, old in enumerate(numbers)}
    chosen = {}
    for key, value in weights.items():
        part = next((name for name in layers if key.startswith(f"{name}.")), None)
        if part is None:
            chosen[key] = value
            continue
        number, _, rest = key.removeprefix(f"{part}.").partition(".")
        old = f"{part}.{number}"
        if old in place:
            chosen[f"{place[old]}.{rest}"] = value
    return chosen


def _layer_lists(keys: Iterable[str]) -> dict[str, set[int]]:
    """Lists of modules by name, and the numbers in them."""
    found: dict[str, set[int]] = {}
    for key in keys:
        for match in re.finditer(r"\.(\d+)\.", key):
            found.setdefault(key[: match.start()], set()).add(int(match[1]))
    return found
