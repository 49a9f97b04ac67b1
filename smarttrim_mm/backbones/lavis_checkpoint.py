"""Public checkpoints of BLIP, ALBEF and LAVIS into a LAVIS model, and trained weights back into one.

Every key of a file is used, left out for a reason, or an error: LAVIS's own loading passes over keys that do not fit.
"""

import re
from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from smarttrim_mm.models.conversion import Conversion, refuse, sort_keys
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file

PREFIX = "backbone.host."
_ADVICE = "Use the arch and the sizes that it was trained with (model.backbone: arch, model_type, vision, text)."
_NO_VISION = (
    " The file has no image encoder, as LAVIS saves no frozen one: set vision_checkpoint to that encoder's file, which LAVIS "
    "downloads (eva_vit_g.pth, clip_vit_L.pth)."
)
_VISION = "visual_encoder."
_OTHER_HEAD = "head of another task"
_OTHER_DECODER = "decoder of another task"
_LAYER = r"bert\.encoder\.layer\.(\d+)\.(.+)"
_QUEUE = r"(image|text|idx)_queue|queue_ptr"
_UNUSED = {
    r"text_(en|de)coder\.(bert\.)?embeddings\.token_type_embeddings\.weight": "token types, which LAVIS's BERT has not",
    r"text_(en|de)coder\.(bert\.)?embeddings\.position_ids": "no weight",
    r"\w+_m\..+": "momentum copy",
    r"(image|text|idx)_queue|queue_ptr|ptr_queue|temp": "contrastive queue",  # _QUEUE, BLIP's name of a part, temperature
    r"text_decoder\..+": _OTHER_DECODER,
    r"(cls_head|itm_head|ta_head|vision_proj|text_proj)\..+|text_encoder\.cls\..+": _OTHER_HEAD,
    r"text_encoder\.(bert\.)?pooler\..+": "BERT's pooler",
    r"vision_checkpoint\..+": "part of the image encoder's file that LAVIS leaves out",
}


def load_public(host: Any, path: str, *, vision: str | None = None) -> Conversion:
    """Loads a public checkpoint into a LAVIS model, all or nothing; what the file lacks stays as it is.

    Position tables are resized by LAVIS's own ``interpolate_pos_embed``. A classification head may be new. NLVR2's twin
    attentions start from the single ones of a pre-trained BLIP, with new merging layers; a decoder, from the language model of
    a pre-trained ALBEF. Momentum copies that the file lacks are made from what was loaded. A queue starts anew if the file has
    none of its size.

    Args:
        host: The LAVIS model.
        path: The file: ``{'model': state dict}``, or a state dict.
        vision: The file of the image encoder, for what the first has not: LAVIS saves no frozen one.

    Returns:
        What became of every key.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, wants to run code, is a checkpoint of ours, or does not fit.
    """
    content = load_checkpoint_file(path, mmap=True)
    public = content.get("model", content.get("state_dict", content))
    if any(key.startswith("backbone.") for key in public):
        raise ValueError(f"{path} is a checkpoint of this package (keys 'backbone.*'); start from it with load_from={path}")
    if vision is not None:
        public = with_vision(public, vision, host)
    found = convert_public(public, host)
    take(found, host)
    return found


def take(found: Conversion, host: Any) -> None:
    """Loads what a file was converted to into a LAVIS model, and makes the momentum copies that it lacks.

    Args:
        found: What :func:`convert_public` gave.
        host: The LAVIS model.
    """
    host.load_state_dict(found.weights, strict=False)
    own = host.state_dict()
    copies = {key: own[key.replace("_m.", ".", 1)] for key in found.initialised if _is_momentum(key)}
    host.load_state_dict(copies, strict=False)


def lacking(found: Conversion) -> list[str]:
    """What a test of the model needs and the file had not; momentum copies and queues serve trainings alone."""
    spare = rf".+\.position_ids|{_QUEUE}"
    return [key for key in found.initialised if not (_is_momentum(key) or re.fullmatch(spare, key))]


def convert_public(public: Mapping[str, Tensor], host: Any) -> Conversion:
    """Sorts the keys of a public checkpoint, see :func:`load_public`; nothing is loaded.

    Args:
        public: State dict of BLIP's, ALBEF's or LAVIS's authors.
        host: The LAVIS model.

    Raises:
        ValueError: With the missing and unexpected keys and the mismatched shapes.
    """
    own = {key: value for key, value in host.state_dict().items() if not key.startswith("policy.")}
    found = Conversion()
    twinned = _twin(public, own)
    begun = _begin_decoder(public, own)
    given = {**twinned, **{key: public[source] for key, source in begun.items()}}
    unexpected = sort_keys(found, given, own, _unused(own), _rename)
    for key, source in begun.items():
        found.left_out.pop(source, None)
        found.changed[key] = f"from {source.partition('.')[0]}, whose last layers it has"
    _fit_positions(found, host)
    _fit_clip_positions(found, host)
    head = [key for key in own if re.fullmatch(r"cls_head(_m)?\..+", key)]
    if any(key in found.weights and found.weights[key].shape != own[key].shape for key in head):
        found.left_out |= dict.fromkeys(head, "head with other answers")
        found.weights = {key: value for key, value in found.weights.items() if key not in head}
    queue = [key for key in own if re.fullmatch(_QUEUE, key)]
    if any(key in found.weights and found.weights[key].shape != own[key].shape for key in queue):
        found.left_out |= {key: "contrastive queue of another size" for key in queue if key in found.weights}
        found.weights = {key: value for key, value in found.weights.items() if key not in queue}
    new = rf"cls_head(_m)?\..+|.+\.position_ids|{_QUEUE}"
    if twinned.keys() != public.keys():
        new += r"|text_encoder\..+\.merge_layer\.(weight|bias)"
    found.initialised = [
        key for key in own if key not in found.weights and (_is_momentum(key) or re.fullmatch(new, key) is not None)
    ]
    bare = not any(key.startswith(_VISION) for key in public) and any(key.startswith("Qformer.") for key in own)
    refuse(found, own, unexpected, [], "LAVIS checkpoint", f"{_ADVICE}{_NO_VISION if bare else ''}")
    return found


def with_vision(public: Mapping[str, Tensor], path: str, host: Any) -> dict[str, Tensor]:
    """The keys of a public checkpoint, and those of its image encoder that are in a file of their own.

    Args:
        public: As in :func:`convert_public`.
        path: The file: the encoder's state dict, of which LAVIS leaves out the last layers.
        host: As in :func:`convert_public`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged or wants to run code.
    """
    own = host.visual_encoder.state_dict()
    weights = load_checkpoint_file(path, mmap=True)
    return {**{(_VISION if key in own else "vision_checkpoint.") + key: value for key, value in weights.items()}, **public}


def plain_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LAVIS model in a state dict of ours: what LAVIS's own ``load_checkpoint`` takes as ``{'model': weights}``.

    Args:
        state_dict: Of a :class:`~smarttrim_mm.models.trimmed_vlm.TrimmedVLM` with a
            :class:`~smarttrim_mm.backbones.lavis.LavisBackbone`.

    Raises:
        ValueError: If it has no LAVIS model.
    """
    weights = {key.removeprefix(PREFIX): value for key, value in state_dict.items() if key.startswith(PREFIX)}
    if not weights:
        raise ValueError(f"no key begins with '{PREFIX}': this is no checkpoint of a LavisBackbone")
    return weights


def _rename(key: str) -> str:
    """ALBEF's text encoder is pre-trained inside of a language model."""
    return re.sub(r"^(text_encoder(?:_m)?)\.bert\.", r"\1.", key)


def _twin(public: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives both of NLVR2's attentions the single one of the file."""
    twinned: dict[str, Tensor] = {}
    for key, value in public.items():
        match = re.fullmatch(r"(text_encoder\..+\.crossattention\.(?:self|output\.dense))(\..+)", key)
        twins = [f"{match[1]}{i}{match[2]}" for i in range(2)] if match else []
        twinned |= dict.fromkeys(twins if twins and twins[0] in own else [key], value)
    return twinned


def _begin_decoder(public: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """What a decoder that the file lacks starts from, by the model's key: the language model that ALBEF's text encoder was.

    As in LAVIS, the decoder's layers are the last ones of the encoder.
    """
    begun: dict[str, str] = {}
    for copy in ("", "_m"):
        encoder, decoder = f"text_encoder{copy}.", f"text_decoder{copy}."
        if any(key.startswith(decoder) for key in public) or not any(key.startswith(f"{encoder}cls.") for key in public):
            continue
        skipped = _depth(public, encoder) - _depth(own, decoder)
        for key in public:
            layer = re.fullmatch(rf"{re.escape(encoder)}{_LAYER}", key)
            part = key.removeprefix(encoder) if layer is None else f"bert.encoder.layer.{int(layer[1]) - skipped}.{layer[2]}"
            if key.startswith(encoder) and decoder + part in own:
                begun[decoder + part] = key
    return begun


def _depth(keys: Iterable[str], prefix: str) -> int:
    """Layers of a BERT."""
    return len({match[1] for key in keys if (match := re.fullmatch(rf"{re.escape(prefix)}{_LAYER}", key))})


def _unused(own: Mapping[str, Tensor]) -> dict[str, str]:
    """Patterns of keys that a model leaves out, and why."""
    decodes = any(key.startswith("text_decoder.") for key in own)
    unused = {pattern: why for pattern, why in _UNUSED.items() if not (decodes and why == _OTHER_DECODER)}
    encodes = any(key.startswith("text_encoder.") for key in own)
    return unused if encodes else {**unused, r"text_encoder\..+": "text encoder, which the model has not"}


def _fit_positions(found: Conversion, host: Any) -> None:
    from lavis.models.vit import interpolate_pos_embed

    for name in ("visual_encoder", "visual_encoder_m"):
        key = f"{name}.pos_embed"
        table = found.weights.get(key)
        if table is None or table.dim() != 3 or table.shape == getattr(host, name).pos_embed.shape:
            continue
        resized = interpolate_pos_embed(table.float(), getattr(host, name)).to(table.dtype)
        before, after = (isqrt(positions.shape[1] - 1) for positions in (table, resized))
        found.weights[key] = resized
        found.changed[key] = f"resized bicubically from {before} x {before} to {after} x {after} patches, class row kept"


def _fit_clip_positions(found: Conversion, host: Any) -> None:
    from lavis.models.clip_vit import interpolate_pos_embed

    key = f"{_VISION}positional_embedding"
    table = found.weights.get(key)
    if table is None or table.dim() != 2 or table.shape == host.visual_encoder.positional_embedding.shape:
        return
    resized = {"positional_embedding": table.float()}
    interpolate_pos_embed(host.visual_encoder, resized)
    found.weights[key] = resized["positional_embedding"].to(table.dtype)
    before, after = (isqrt(len(positions) - 1) for positions in (table, found.weights[key]))
    found.changed[key] = f"resized bicubically from {before} x {before} to {after} x {after} patches, class row kept"


def _is_momentum(key: str) -> bool:
    return key.partition(".")[0].endswith("_m")
