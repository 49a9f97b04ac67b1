"""Small models of every task on data sets in the official formats, for tools that take any config."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import official_files
import torch
from mmengine.config import Config

from smarttrim_mm.backbones.lavis import LavisBackbone
from smarttrim_mm.backbones.meter import METER
from smarttrim_mm.backbones.mmpretrain import MMPretrainBackbone
from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.testing import excite

_WORDS = ["red", "blue", "yes", "no", "green", "there", "are", "dogs", "in", "is", "it", "a", "dog", "caption", "of", "image"]
_WORDS += ["how", "many", "picture", "what", "color", *"01234567.?-"]  # 36 with the four special ones, of 40 ids
TOKENIZER = {"type": "WordTokenizer", "words": _WORDS}
_AS_WORDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}  # ids of a WordTokenizer
_METER = METER.small_configs()


def _lavis(arch: str, **changes: Any) -> dict[str, Any]:
    found = next(case for case in LavisBackbone.small_configs().values() if case["arch"] == arch)
    return {**found, **changes, "text": {**found["text"], **_AS_WORDS, "vocab_size": 38}}  # [DEC] and [ENC] come last


def _mmpretrain(kind: str, **changes: Any) -> dict[str, Any]:
    """Of mmpretrain's BLIP, with the ids of the tokenizer here."""
    cases = MMPretrainBackbone.small_configs().values()
    found = copy.deepcopy(next(case for case in cases if case["model"]["type"] == kind))

    def walk(section: Mapping[str, Any]) -> None:
        for value in section.values():
            if isinstance(value, dict):
                if "vocab_size" in value:
                    value.update(_AS_WORDS, vocab_size=38)
                walk(value)

    walk(found["model"])
    return {**found, **changes, "model": {**found["model"], **changes.get("model", {})}}


def _write_flickr(root: Path) -> Path:
    return official_files.write_karpathy(root, source="flickr30k", images=20)


_FLICKR = (_write_flickr, {"type": "KarpathyRetrieval", "source": "flickr30k", "split": "test"})
_NLVR2 = (official_files.write_nlvr2, {"type": "NLVR2", "split": "dev"})
_VQA = (official_files.write_vqav2, {"type": "VQAv2", "split": "test", "num_classes": len(official_files.VQA_CLASSES)})
# of each task: its backbone; who writes its files, and the data set
TASKS: dict[str, tuple[dict[str, Any], tuple[Callable[[Path], Path], Mapping[str, Any]]]] = {
    "METER VQA": ({**_METER["text first"], "num_classes": len(official_files.VQA_CLASSES)}, _VQA),
    "METER NLVR2": ({**_METER["two images"], "num_classes": 2}, _NLVR2),
    "METER retrieval": ({**_METER["shared images"], "num_classes": None, "head_name": "rank_output"}, _FLICKR),
    "BLIP VQA": (_lavis("blip_vqa", answers=official_files.VQA_CLASSES, tokenizer=TOKENIZER), _VQA),
    "BLIP NLVR2": (_lavis("blip_nlvr", num_classes=2), _NLVR2),
    "BLIP retrieval": (_lavis("blip_retrieval"), _FLICKR),
    "ALBEF retrieval": (_lavis("albef_retrieval"), _FLICKR),
    "BLIP-2 retrieval": (_lavis("blip2_qformer", ranks_texts=True), _FLICKR),
    "mmpretrain VQA": (_mmpretrain("BlipVQA", answers=official_files.VQA_CLASSES, tokenizer=TOKENIZER), _VQA),
    "mmpretrain VQA, written": (
        _mmpretrain(
            "BlipVQA",
            answers=official_files.VQA_CLASSES,
            tokenizer=TOKENIZER,
            generation={"num_beams": 2, "max_length": 8, "min_length": 4},
        ),
        _VQA,
    ),
    "mmpretrain NLVR2": (_mmpretrain("BlipNLVR"), _NLVR2),
    "mmpretrain retrieval": (_mmpretrain("BlipRetrieval"), _FLICKR),
    "mmpretrain captions": (
        _mmpretrain(
            "BlipCaption",
            model={"prompt": "a picture of"},
            tokenizer=TOKENIZER,
            generation={"num_beams": 2, "max_length": 10, "min_length": 6},
        ),
        (official_files.write_coco_captions, {"type": "COCOKarpathyCaption", "split": "test"}),
    ),
    "BLIP captions": (
        _lavis(
            "blip_caption",
            prompt="a picture of",
            tokenizer=TOKENIZER,
            generation={"num_beams": 2, "max_length": 10, "min_length": 6},
        ),
        (official_files.write_coco_captions, {"type": "COCOKarpathyCaption", "split": "test"}),
    ),
}


def write_task(name: str, folder: Path, policy: Mapping[str, Any], threshold: float | None = None) -> tuple[str, str]:
    """Writes a task's data, config and checkpoint.

    Args:
        name: Of the task.
        folder: Where to.
        policy: Config of the policy.
        threshold: Its knob; None: as it is.

    Returns:
        The paths of config and checkpoint.
    """
    backbone, (write, dataset) = TASKS[name]
    generator = np.random.default_rng(0)
    for path in write(folder / "data").rglob("*.*"):
        if path.suffix in (".jpg", ".png"):
            height, width = generator.integers(30, 60, 2)
            assert cv2.imwrite(str(path), generator.integers(0, 255, (height, width, 3), np.uint8))
    size = backbone.get("vision", {}).get("image_size", 16)
    resize = {"type": "mmpretrain.Resize", "scale": (size, size), "interpolation": "bicubic", "backend": "pillow"}
    load = [{"type": "LoadImage", "imdecode_backend": "pillow"}, resize]
    if dataset["type"] == "NLVR2":
        load = [{"type": "LoadImages", "imdecode_backend": "pillow", "transforms": [resize]}]
    pipeline = [*load, {"type": "TokenizeQuestions", "tokenizer": TOKENIZER, "max_length": 20}, {"type": "PackVLInputs"}]
    loader = {
        "batch_size": 2,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "collate_fn": {"type": "pseudo_collate"},
        "dataset": {**dataset, "data_root": str(folder / "data"), "pipeline": pipeline},
    }
    model = {"type": "TrimmedVLM", "backbone": backbone, "policy": dict(policy)}
    config = folder / f"{name.lower().replace(' ', '_')}.py"
    preprocessor = {"type": "VisionLanguagePreprocessor"}
    Config(
        {"default_scope": "smarttrim_mm", "model": model, "test_dataloader": loader, "data_preprocessor": preprocessor}
    ).dump(config)
    built = build_model(read_config(str(config)))
    excite(built)
    if threshold is not None:
        built.policy.set_knob(threshold)
    checkpoint = folder / "weights.pth"
    torch.save({"state_dict": built.state_dict(), "meta": {}}, checkpoint)
    return str(config), str(checkpoint)
