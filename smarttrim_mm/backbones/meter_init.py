"""Starts a METER from public weights on the disk: a file of METER's authors, or folders of CLIP and RoBERTa."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.logging import print_log
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, RobertaConfig

from smarttrim_mm.backbones.meter_checkpoint import convert_clip, convert_meter, convert_roberta
from smarttrim_mm.models.conversion import Conversion
from smarttrim_mm.utils.checkpoint_io import CheckpointError, load_checkpoint_file

if TYPE_CHECKING:
    from smarttrim_mm.backbones.meter import METER

_FILES = ("model.safetensors", "pytorch_model.bin")


def check_sources(init_from: Mapping[str, str]) -> dict[str, str]:
    """Checks where a METER is to start from; nothing is read.

    Args:
        init_from: ``{'meter': FILE}``, or ``{'clip': FOLDER}``, ``{'roberta': FOLDER}``, or both of these.

    Returns:
        A copy.

    Raises:
        ValueError: If there are other names, or a METER file and folders.
    """
    if not init_from.keys() <= {"clip", "roberta"} and init_from.keys() != {"meter"}:
        raise ValueError(
            f"init_from has {', '.join(map(repr, init_from))}; expected 'meter' alone (a public METER file, which holds every "
            "part), or 'clip' and 'roberta' (folders of the encoders)"
        )
    return dict(init_from)


def initialise(model: METER, init_from: Mapping[str, str]) -> None:
    """Loads public weights into a METER, all or nothing; what the files lack stays as it is, which the log says.

    Args:
        model: The backbone.
        init_from: See :func:`check_sources`.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If one is damaged, wants to run code, or is of another architecture.
    """
    own = model.state_dict()
    conversions: dict[str, Conversion] = {}
    if "meter" in init_from:
        path = init_from["meter"]
        conversions[path] = convert_meter(read_meter(path), own, head_name=model.head_name, new_head=True)
    if "clip" in init_from:
        folder = init_from["clip"]
        settings = {"num_attention_heads": model.trunk.blocks[0].attn.heads, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
        check_settings(folder, CLIPVisionConfig, settings)
        conversions[folder] = convert_clip(read_folder(folder), own)
    if "roberta" in init_from:
        folder = init_from["roberta"]
        names = ("num_attention_heads", "hidden_act", "layer_norm_eps", "pad_token_id", "position_embedding_type")
        config = model.text_transformer.config
        check_settings(folder, RobertaConfig, {name: getattr(config, name) for name in names})
        conversions[folder] = convert_roberta(read_folder(folder), own)
    for source, found in conversions.items():
        model.load_state_dict(found.weights, strict=False)
        print_log(f"{type(model).__name__} starts from {source}:\n{found.table()}", logger="current")


def read_meter(path: str) -> dict[str, Tensor]:
    """The state dict of a public METER file.

    Args:
        path: The file, as Lightning writes it or a state dict alone.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, wants to run code, or is a checkpoint of ours.
    """
    content = load_checkpoint_file(path, mmap=True)
    weights = content.get("state_dict", content)
    if any(key.startswith("backbone.") for key in weights):
        raise ValueError(
            f"{path} is a checkpoint of this package already (keys 'backbone.*'); start from it with load_from={path}"
        )
    return weights


def read_folder(folder: str) -> dict[str, Tensor]:
    """The state dict in a folder of ``transformers``; only weights are read, and nothing is downloaded.

    Args:
        folder: Holds ``model.safetensors`` or ``pytorch_model.bin``.

    Raises:
        FileNotFoundError: If it does not.
        ValueError: If the file is damaged or wants to run code.
    """
    path = next((file for name in _FILES if (file := Path(folder).expanduser() / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder}: no folder with {' or '.join(_FILES)}. Nothing is downloaded: get the model's files (openai/"
            "clip-vit-base-patch16, roberta-base) and name their folder in model.backbone.init_from"
        )
    if path.suffix == ".bin":
        return load_checkpoint_file(path, mmap=True)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is truncated or damaged ({error}): copy it again"
        ) from error


def check_settings(folder: str, kind: Any, expected: Mapping[str, Any]) -> None:
    """Compares what shapes do not tell with the folder's ``config.json``, if there is one.

    Args:
        folder: The folder.
        kind: Class of its configuration in ``transformers``.
        expected: Values of our model by setting.

    Raises:
        ValueError: If one differs.
    """
    if not (Path(folder).expanduser() / "config.json").is_file():
        return
    config = kind.from_pretrained(str(Path(folder).expanduser()), local_files_only=True)
    wrong = [
        f"{name} {getattr(config, name)!r}, the model's {value!r}"
        for name, value in expected.items()
        if getattr(config, name) != value
    ]
    if wrong:
        raise ValueError(
            f"{folder}/config.json is of another model: {'; '.join(wrong)}. Nothing was loaded; name another folder"
        )
