"""Public checkpoints of mmpretrain into a model of mmpretrain, and trained weights back into one.

Every key of a file is used, left out for a reason, or an error: mmengine's own loading passes over keys that do not fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from smarttrim_mm.models.conversion import Conversion, refuse, sort_keys
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file

PREFIX = "backbone.host."
_ADVICE = "Use mmpretrain's config that it was trained with (model.backbone.model)."
_HEAD = r"head\..+"  # a classifier's; heads of other tasks have longer names, and are no mere Linears
_QUEUE = r"head\.((image|text|idx)_queue|queue_ptr|temp)"  # of retrieval, whose temperature has two names
_MOMENTUM = r"\w+_m\..+"
_UNUSED = {
    r"data_preprocessor\..+": "pre-processing",
    r"(\w+_)?head\..+": "head of another task",
    r"neck\..+": "neck of the pre-training",
    _MOMENTUM: "momentum copy",
    r"(image|text|idx)_queue|queue_ptr|temp": "contrastive queue",
    r".+\.position_ids": "no weight",
}


def load_public(host: Any, path: str) -> Conversion:
    """Loads a public checkpoint into a model of mmpretrain, all or nothing; what the file lacks stays as it is.

    Position tables are resized by mmpretrain's own ``resize_pos_embed``. A classification head of other classes is new.
    Momentum copies that the file lacks are made from what was loaded. A queue starts anew if the file has none of its size.

    Args:
        host: The model.
        path: The file: ``{'state_dict': …}``, or a state dict.

    Returns:
        What became of every key.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, wants to run code, is a checkpoint of ours, or does not fit.
    """
    content = load_checkpoint_file(path, mmap=True)
    public = content.get("state_dict", content)
    if any(key.startswith(PREFIX) for key in public):
        raise ValueError(f"{path} is a checkpoint of this package (keys '{PREFIX}*'); start from it with load_from={path}")
    found = convert_public(public, host)
    host.load_state_dict(found.weights, strict=False)
    own = host.state_dict()
    copies = {key: own[key.replace("_m.", ".", 1)] for key in found.initialised if re.fullmatch(_MOMENTUM, key)}
    host.load_state_dict(copies, strict=False)
    return found


def convert_public(public: Mapping[str, Tensor], host: Any) -> Conversion:
    """Sorts the keys of a public checkpoint, see :func:`load_public`; nothing is loaded.

    Args:
        public: State dict of a model of mmpretrain.
        host: The model.

    Raises:
        ValueError: With the missing and unexpected keys and the mismatched shapes.
    """
    own: dict[str, Tensor] = host.state_dict()
    found = Conversion()
    unexpected = sort_keys(found, public, own, _UNUSED, lambda key: key)
    _fit_positions(found, host)
    queue = [key for key in own if re.fullmatch(_QUEUE, key)]
    head = [key for key in own if re.fullmatch(_HEAD, key) and key not in queue]
    for part, why in ((queue, "contrastive queue of another size"), (head, "head with other classes")):
        if any(key in found.weights and found.weights[key].shape != own[key].shape for key in part):
            found.left_out |= {key: why for key in part if key in found.weights}
            found.weights = {key: value for key, value in found.weights.items() if key not in part}
    others = [key for key in own if re.fullmatch(rf"{_MOMENTUM}|.+\.position_ids", key)]
    found.initialised = [key for key in [*queue, *head, *others] if key not in found.weights]
    refuse(found, own, unexpected, [], "mmpretrain checkpoint", _ADVICE)
    return found


def plain_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model of mmpretrain in a state dict of ours: what mmpretrain takes as ``{'state_dict': weights}``.

    Args:
        state_dict: Of a :class:`~smarttrim_mm.models.trimmed_vlm.TrimmedVLM` with a host of mmpretrain.

    Raises:
        ValueError: If it has none.
    """
    weights = {key.removeprefix(PREFIX): value for key, value in state_dict.items() if key.startswith(PREFIX)}
    if not weights:
        raise ValueError(f"no key begins with '{PREFIX}': this is no checkpoint of a model of mmpretrain")
    return weights


def _fit_positions(found: Conversion, host: Any) -> None:
    for name, module in host.named_modules():
        key = f"{name}.pos_embed"
        table, own = found.weights.get(key), getattr(module, "pos_embed", None)
        if table is None or own is None or table.shape == own.shape or not hasattr(module, "resize_pos_embed"):
            continue
        extra = module.num_extra_tokens
        if table.dim() != 3 or table.shape[2] != own.shape[2] or isqrt(table.shape[1] - extra) ** 2 != table.shape[1] - extra:
            continue  # of another architecture, which the shapes will tell
        before, after = (isqrt(table.shape[1] - extra),) * 2, tuple(module.patch_resolution)
        resized = module.resize_pos_embed(table.float(), before, after, module.interpolate_mode, extra)
        found.weights[key] = resized.to(table.dtype)
        sizes = " to ".join(f"{height} x {width}" for height, width in (before, after))
        found.changed[key] = f"resized ({module.interpolate_mode}) from {sizes} patches, class row kept"
