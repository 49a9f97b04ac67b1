"""Small checkpoints in the layouts of METER's authors, of Lightning and of transformers, with the public names written out."""

import sys
import types
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, RobertaConfig

import smarttrim_mm  # noqa: F401  # before transformers' models: torchvision needs a repair on a CPU build

VISION, TEXT, FUSION, PATCH = 48, 32, 64, 8  # widths and the patch's side of METER.small_configs()
CLIP_CONFIG = CLIPVisionConfig(
    hidden_size=VISION,
    intermediate_size=4 * VISION,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=32,
    patch_size=PATCH,
)
ROBERTA_CONFIG = RobertaConfig(
    vocab_size=40,
    hidden_size=TEXT,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=24,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
)


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def bert_attention(name: str, width: int, other: int | None = None) -> dict[str, tuple[int, ...]]:
    return {
        **linear(f"{name}.self.query", width, width),
        **linear(f"{name}.self.key", width, other or width),
        **linear(f"{name}.self.value", width, other or width),
        **linear(f"{name}.output.dense", width, width),
        **norm(f"{name}.output.LayerNorm", width),
    }


def bert_mlp(name: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        **linear(f"{name}.intermediate.dense", hidden, width),
        **linear(f"{name}.output.dense", width, hidden),
        **norm(f"{name}.output.LayerNorm", width),
    }


def classifier(name: str, inputs: int, classes: int) -> dict[str, tuple[int, ...]]:
    hidden = 2 * FUSION
    return {**linear(f"{name}.0", hidden, inputs), **norm(f"{name}.1", hidden), **linear(f"{name}.3", classes, hidden)}


def meter_shapes(
    task: str, *, grid: int = 4, blocks: int = 3, answers: int = 7, token_types: int = 2, words: int = 40, positions: int = 24
) -> dict[str, tuple]:
    """Names and shapes of a checkpoint of ``task``: pretrain, vqa, nlvr2, snli or flickr."""
    visual = "vit_model.visual"
    shapes: dict[str, tuple[int, ...]] = {
        "token_type_embeddings.weight": (token_types, FUSION),
        "vit_model.positional_embedding": (77, 20),
        **norm("vit_model.ln_final", 20),
        f"{visual}.class_embedding": (VISION,),
        f"{visual}.positional_embedding": (grid**2 + 1, VISION),
        f"{visual}.conv1.weight": (VISION, 3, PATCH, PATCH),
        **norm(f"{visual}.ln_pre", VISION),
        **norm(f"{visual}.ln_post", VISION),
        "text_transformer.embeddings.position_ids": (1, positions),
        "text_transformer.embeddings.word_embeddings.weight": (words, TEXT),
        "text_transformer.embeddings.position_embeddings.weight": (positions, TEXT),
        "text_transformer.embeddings.token_type_embeddings.weight": (1, TEXT),
        **norm("text_transformer.embeddings.LayerNorm", TEXT),
        **linear("text_transformer.pooler.dense", TEXT, TEXT),
        **linear("cross_modal_text_transform", FUSION, TEXT),
        **linear("cross_modal_image_transform", FUSION, VISION),
        **linear("cross_modal_text_pooler.dense", FUSION, FUSION),
        **linear("cross_modal_image_pooler.dense", FUSION, FUSION),
    }
    for i in range(blocks):
        block = f"{visual}.transformer.resblocks.{i}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * VISION, VISION), f"{block}.attn.in_proj_bias": (3 * VISION,)}
        shapes |= (
            linear(f"{block}.attn.out_proj", VISION, VISION) | norm(f"{block}.ln_1", VISION) | norm(f"{block}.ln_2", VISION)
        )
        shapes |= linear(f"{block}.mlp.c_fc", 4 * VISION, VISION) | linear(f"{block}.mlp.c_proj", VISION, 4 * VISION)
    for i in range(2):
        layer = f"text_transformer.encoder.layer.{i}"
        shapes |= bert_attention(f"{layer}.attention", TEXT) | bert_mlp(layer, TEXT, 64)
        for layer in (f"cross_modal_text_layers.{i}", f"cross_modal_image_layers.{i}"):
            shapes |= bert_attention(f"{layer}.attention", FUSION) | bert_attention(f"{layer}.crossattention", FUSION)
            shapes |= bert_mlp(layer, FUSION, 128)
    itm = linear("itm_score.fc", 2, 2 * FUSION)
    mlm = linear("mlm_score.transform.dense", FUSION, FUSION) | norm("mlm_score.transform.LayerNorm", FUSION)
    heads = {
        "pretrain": itm | mlm | {"mlm_score.decoder.weight": (40, FUSION), "mlm_score.bias": (40,)},
        "vqa": classifier("vqa_classifier", 2 * FUSION, answers),
        "nlvr2": classifier("nlvr2_classifier", 4 * FUSION, 2),
        "snli": classifier("snli_classifier", 2 * FUSION, 3),
        "flickr": itm | linear("rank_output", 1, 2 * FUSION),
    }
    return shapes | heads[task]


def meter_weights(task: str, **sizes: int) -> dict[str, Tensor]:
    """Random weights, none of them small."""
    weights = {}
    for name, shape in meter_shapes(task, **sizes).items():
        if name.endswith("position_ids"):
            weights[name] = torch.arange(shape[1])[None]
        elif len(shape) == 1:
            around = 1 if name.endswith("weight") else 0  # the scale of a norm, or a bias
            weights[name] = around + 0.1 * torch.randn(shape)
        else:
            weights[name] = torch.randn(shape) * (0.5 if "embedding" in name else torch.Size(shape[1:]).numel() ** -0.5)
    return weights


def clip_weights(public: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision trunk as ``CLIPVisionModel`` names it."""
    trunk = {name.removeprefix("vit_model.visual."): value for name, value in public.items() if "visual." in name}
    theirs = {
        "vision_model.embeddings.class_embedding": trunk["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": trunk["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": trunk["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        theirs[f"vision_model.pre_layrnorm.{kind}"] = trunk[f"ln_pre.{kind}"]
        theirs[f"vision_model.post_layernorm.{kind}"] = trunk[f"ln_post.{kind}"]
        for i in range(sum(name.endswith("in_proj_bias") for name in trunk)):
            block, layer = f"transformer.resblocks.{i}", f"vision_model.encoder.layers.{i}"
            for part, value in zip("qkv", trunk[f"{block}.attn.in_proj_{kind}"].chunk(3), strict=True):
                theirs[f"{layer}.self_attn.{part}_proj.{kind}"] = value.clone()
            theirs[f"{layer}.self_attn.out_proj.{kind}"] = trunk[f"{block}.attn.out_proj.{kind}"]
            theirs[f"{layer}.layer_norm1.{kind}"] = trunk[f"{block}.ln_1.{kind}"]
            theirs[f"{layer}.layer_norm2.{kind}"] = trunk[f"{block}.ln_2.{kind}"]
            theirs[f"{layer}.mlp.fc1.{kind}"] = trunk[f"{block}.mlp.c_fc.{kind}"]
            theirs[f"{layer}.mlp.fc2.{kind}"] = trunk[f"{block}.mlp.c_proj.{kind}"]
    return theirs


def write_lightning(path: Path, weights: dict[str, Tensor], *, zipped: bool = True, **more: object) -> Path:
    """Writes a file as Lightning 1.3 does, with its classes; afterwards they cannot be imported any more."""

    class ReadOnlyDict(dict):
        def __reduce__(self):
            return type(self), (dict(self),)

    kinds = {
        "pytorch_lightning.callbacks.model_checkpoint": type("ModelCheckpoint", (), {}),
        "pytorch_lightning.callbacks.early_stopping": type("EarlyStopping", (), {}),
        "pytorch_lightning.utilities.parsing": type("AttributeDict", (dict,), {}),
        "sacred.config.custom_containers": ReadOnlyDict,
    }
    added = []
    for module, kind in kinds.items():
        kind.__module__, kind.__qualname__ = module, kind.__name__
        for end in [i for i, letter in enumerate(module) if letter == "."] + [len(module)]:
            if module[:end] not in sys.modules:
                added.append(module[:end])
                sys.modules[module[:end]] = types.ModuleType(module[:end])
        setattr(sys.modules[module], kind.__name__, kind)
    checkpoint, stopping, attributes, read_only = kinds.values()
    content = {
        "epoch": 9,
        "global_step": 100,
        "pytorch-lightning_version": "1.3.2",
        "callbacks": {checkpoint: {"monitor": "val/the_metric", "best_model_score": torch.tensor(0.77)}, stopping: {}},
        "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.zeros(2)}}, "param_groups": [{"betas": (0.9, 0.98)}]}],
        "lr_schedulers": [{"base_lrs": [5e-6], "lr_lambdas": [None]}],
        "state_dict": weights,
        "hparams_name": "config",
        "hyper_parameters": attributes(config=read_only({"image_size": 576, "datasets": ["vqa"], "loss_names": {"vqa": 1}})),
        **more,
    }
    try:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    finally:
        for module in added:
            del sys.modules[module]
    return path
