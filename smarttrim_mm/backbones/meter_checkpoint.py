"""Public weights as those of our METER: every key of a file is used, left out for a reason, or an error.

Three layouts are read: the checkpoints of METER's authors (``zdou0830/METER``, at commit f4f0934), CLIP's vision trunk and
RoBERTa as ``transformers`` saves them. Nothing here touches a model or a file.
"""

import re
from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from smarttrim_mm.models.conversion import Conversion, refuse, sort_keys

VISION = "vit_model.visual."
POSITIONS = f"{VISION}positional_embedding"
RANK = "rank_output"
_TEXT = "text_transformer."
_TOKEN_TYPES = "token_type_embeddings.weight"
_SURPLUS = "the block after METER's last"
_OTHER_HEAD = "head of another task"
_MATCH = "itm_score.fc"

# keys of a public file, and why METER's forward has no use for them
_METER_UNUSED = {
    r"vit_model\.(positional_embedding|ln_final\.(weight|bias)|token_embedding\.weight)": "CLIP's text encoder",
    r"text_transformer\.pooler\.dense\.(weight|bias)": "RoBERTa's pooler",
    r"text_transformer\.embeddings\.(position_ids|token_type_ids)": "no weight",
}
_METER_HEADS = r"(mlm_score|itm_score|rank_output|\w+_classifier)\..+"
_CLIP_UNUSED = {
    r"text_model\..+|text_projection\.weight": "CLIP's text encoder",
    r"visual_projection\.weight|logit_scale": "CLIP's contrastive head",
    r"vision_model\.embeddings\.position_ids": "no weight",
}
_ROBERTA_UNUSED = {
    r"lm_head\..+": _OTHER_HEAD,
    r"(roberta\.)?pooler\.dense\.(weight|bias)": "RoBERTa's pooler",
    r"(roberta\.)?embeddings\.(position_ids|token_type_ids)": "no weight",
}
_ADVICE = (
    "Use a config of its sizes and task (model.backbone: vision, text, fusion, head_name, num_classes). With "
    "model.backbone.init_from, training can start from a METER file of another task, with a new head."
)
_CLIP_NAMES = (
    ("vision_model.", VISION),
    ("embeddings.patch_embedding.", "conv1."),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("embeddings.class_embedding", "class_embedding"),
    ("pre_layrnorm.", "ln_pre."),  # transformers spells it so
    ("post_layernorm.", "ln_post."),
    ("encoder.layers.", "transformer.resblocks."),
    (".self_attn.", ".attn."),
    (".layer_norm", ".ln_"),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


def convert_meter(
    public: Mapping[str, Tensor], own: Mapping[str, Tensor], *, head_name: str, new_head: bool = False
) -> Conversion:
    """Turns a state dict of METER's authors, pre-trained or fine-tuned, into one of our METER.

    The position table is resized to the model's grid. A ranking head that the file lacks is row 1, "match", of its head of
    image-text matching, as METER starts it. Of the three token types of an NLVR2 checkpoint a model with two takes
    the first two; a model with three takes the second image's from the first image's, as METER does when it is fine-tuned.

    Args:
        public: ``checkpoint['state_dict']`` of the public file.
        own: State dict of our METER; its shapes are what counts.
        head_name: Name of our head among the parameters.
        new_head: Whether our head may stay as it is, where the file has none of that name and shape: for fine-tuning.

    Raises:
        ValueError: With the missing and unexpected keys, the mismatched shapes, and the head that is missing.
    """
    found = Conversion()
    depth = _depth(own, rf"{re.escape(VISION)}transformer\.resblocks\.(\d+)\.")
    surplus = rf"{re.escape(VISION)}transformer\.resblocks\.{depth}\..+"
    unused = {**_METER_UNUSED, rf"(?!{re.escape(head_name)}\.){_METER_HEADS}": _OTHER_HEAD, surplus: _SURPLUS}
    unexpected = sort_keys(found, public, own, unused, lambda key: key)
    if f"{head_name}.weight" in own and f"{RANK}.weight" not in public:
        _rank_by_match(found, public, head_name)
    problems = _fit_head(found, own, head_name, new_head)
    _fit_positions(found, own)
    if _TOKEN_TYPES in found.weights and _TOKEN_TYPES in own:
        _fit_token_types(found, len(own[_TOKEN_TYPES]))
    refuse(found, own, unexpected, problems, "METER checkpoint", _ADVICE)
    return found


def convert_clip(public: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Conversion:
    """Turns a ``CLIPModel`` or ``CLIPVisionModel`` of ``transformers`` into the weights of METER's vision trunk.

    The trunk has all blocks but CLIP's last; the position table is resized to its grid.

    Args:
        public: State dict, keys ``vision_model.*``.
        own: State dict of our METER.

    Raises:
        ValueError: With the missing and unexpected keys and the mismatched shapes.
    """
    own = {key: value for key, value in own.items() if key.startswith(VISION)}
    found = Conversion()
    depth = _depth(own, rf"{re.escape(VISION)}transformer\.resblocks\.(\d+)\.")
    unused = {**_CLIP_UNUSED, rf"vision_model\.encoder\.layers\.{depth}\..+": _SURPLUS}
    unexpected = sort_keys(found, _fuse_projections(public), own, unused, _clip_name)
    _fit_positions(found, own)
    refuse(found, own, unexpected, [], "CLIP model", _ADVICE)
    return found


def convert_roberta(public: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Conversion:
    """Turns a RoBERTa of ``transformers`` into the weights of METER's text encoder.

    Args:
        public: State dict, keys ``roberta.*`` or without that prefix.
        own: State dict of our METER.

    Raises:
        ValueError: With the missing and unexpected keys and the mismatched shapes.
    """
    own = {key: value for key, value in own.items() if key.startswith(_TEXT)}
    found = Conversion()
    unexpected = sort_keys(found, public, own, _ROBERTA_UNUSED, lambda key: _TEXT + key.removeprefix("roberta."))
    refuse(found, own, unexpected, [], "RoBERTa", _ADVICE)
    return found


def resize_positions(table: Tensor, grid: int) -> Tensor:
    """Resizes a table of positions bicubically, without anti-aliasing, as METER does; the class row is kept.

    Args:
        table: Class row and one row per patch of a square grid, [g^2 + 1, D].
        grid: Patches along the new side.

    Returns:
        [grid^2 + 1, D].

    Raises:
        ValueError: If the table has no square grid.
    """
    side = isqrt(len(table) - 1)
    if side**2 + 1 != len(table):
        raise ValueError(f"the position table has {len(table)} rows; expected one for the class and a square number of patches")
    patches = table[1:].float().unflatten(0, (side, side)).permute(2, 0, 1)[None]  # [1, D, g, g]
    patches = interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], patches[0].flatten(1).T.to(table.dtype)])


def _clip_name(key: str) -> str:
    for theirs, ours in _CLIP_NAMES:
        key = key.replace(theirs, ours)
    return key


def _fuse_projections(public: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Puts CLIP's three projections of an attention on top of each other: [D, D] each -> [3 D, D]."""
    fused = dict(public)
    for key in public:
        if match := re.fullmatch(r"(vision_model\..+\.self_attn\.)q_proj\.(weight|bias)", key):
            parts = [f"{match[1]}{part}_proj.{match[2]}" for part in "qkv"]
            if all(part in public for part in parts):
                fused[f"{match[1]}in_proj_{match[2]}"] = torch.cat([fused.pop(part) for part in parts])
    return fused


def _rank_by_match(found: Conversion, public: Mapping[str, Tensor], head_name: str) -> None:
    """Takes the ranking head, [1, 2 D], from the head of image-text matching, [2, 2 D]: no match, match."""
    for kind in ("weight", "bias"):
        value = public.get(f"{_MATCH}.{kind}")
        if isinstance(value, Tensor) and value.dim():
            found.weights[f"{head_name}.{kind}"] = value[1:]
            found.changed[f"{head_name}.{kind}"] = f"row 1 of {_MATCH}"
            del found.left_out[f"{_MATCH}.{kind}"]


def _fit_head(found: Conversion, own: Mapping[str, Tensor], head_name: str, new_head: bool) -> list[str]:
    """Lets our head be new where that is wanted; returns what is wrong."""
    head = [key for key in own if key.startswith(f"{head_name}.")]
    theirs = [key for key in head if key in found.weights]
    if new_head and any(found.weights[key].shape != own[key].shape for key in theirs):
        found.left_out |= dict.fromkeys(theirs, "head with other answers")
        found.weights = {key: value for key, value in found.weights.items() if key not in theirs}
        theirs = []
    if theirs:
        return []
    found.initialised = head
    if new_head:
        return []
    heads = sorted({key.split(".")[0] for key, why in found.left_out.items() if why == _OTHER_HEAD})
    return [f"  no head {head_name!r}; heads of the file: {', '.join(heads) or 'none'}"]


def _fit_positions(found: Conversion, own: Mapping[str, Tensor]) -> None:
    table = found.weights.get(POSITIONS)
    if table is None or table.dim() != 2 or table.shape == own[POSITIONS].shape:
        return
    before, after = isqrt(len(table) - 1), isqrt(len(own[POSITIONS]) - 1)
    found.weights[POSITIONS] = resize_positions(table, after)
    found.changed[POSITIONS] = f"resized bicubically from {before} x {before} to {after} x {after} patches, class row kept"


def _fit_token_types(found: Conversion, wanted: int) -> None:
    table = found.weights[_TOKEN_TYPES]
    if (len(table), wanted) == (3, 2):
        found.weights[_TOKEN_TYPES] = table[:2]
        found.changed[_TOKEN_TYPES] = "the first 2 of 3 rows: text and first image"
    elif (len(table), wanted) == (2, 3):
        found.weights[_TOKEN_TYPES] = torch.cat([table, table[1:]])
        found.changed[_TOKEN_TYPES] = "a third row for the second image, equal to the first image's"


def _depth(own: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(match[1]) for key in own if (match := re.match(pattern, key)))
