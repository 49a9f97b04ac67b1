from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from small_lavis import ANSWERS, SIZES, TEXTS, WORDS

from smarttrim_mm.registry import LAVIS_ARCHS
from smarttrim_mm.testing import excite


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Path:
    """A folder with a BERT vocabulary of 118 words, in which [CLS] and [SEP] have BERT's ids."""
    folder = tmp_path_factory.mktemp("vocabulary")
    known = " ".join(WORDS).split()
    words = ["[PAD]", "[UNK]", *dict.fromkeys(known), *(f"word{i}" for i in range(200))]
    words[101:101] = ["[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join(words[:118]))
    return folder


@pytest.fixture
def settings(vocabulary) -> Callable:
    """The section ``model`` of a LAVIS config of a small model."""

    def make(arch: str, policy: dict | str = "Dense", trimming: dict | None = None, **changes: Any) -> Any:
        host_class = LAVIS_ARCHS.get(arch).lavis_class(arch)
        text = {**SIZES["text"]}
        if arch.startswith("albef"):
            text |= {"fusion_layer": 1}
        if arch == "albef_nlvr":
            text |= {"num_hidden_layers": 5}
        if arch == "blip_nlvr":
            text |= {"num_hidden_layers": 7}
        path = host_class.default_config_path(next(iter(host_class.PRETRAINED_MODEL_CONFIG_DICT)))
        own = {
            **SIZES,
            "text": text,
            "tokenizer": str(vocabulary),
            "num_classes": 3,
            "load_finetuned": False,
            "load_pretrained": False,
            "vit_drop_path_rate": 0,
            "trimming": {"policy": {"type": policy} if isinstance(policy, str) else policy, **(trimming or {})},
        }
        if arch == "blip_caption":
            own["text"] = {**text, "max_position_embeddings": 32}  # as many as LAVIS's captions may have
        if "vqa" in arch:
            own["decoder"] = {"num_hidden_layers": 2}
        if "retrieval" in arch:
            own |= {"queue_size": 12, "embed_dim": 12, "max_txt_len": 12}
        return OmegaConf.merge(OmegaConf.load(path).model, {**own, **changes})

    return make


@pytest.fixture
def build(settings) -> Callable:
    """A small trimmed model of LAVIS's registry in evaluation mode, with weights that are neither small nor zero."""
    import smarttrim_mm.lavis as plugin

    def make(arch: str, *args: Any, **kwargs: Any) -> Any:
        model = plugin.registry.get_model_class(f"smarttrim_{arch}").from_config(settings(arch, *args, **kwargs)).eval()
        with torch.no_grad():
            for name, child in model.named_children():
                if name != "policy":
                    excite(child)
        return model

    return make


@pytest.fixture
def lavis_own(settings) -> Callable:
    """LAVIS's own model with the weights of a trimmed one; ``use_distill``, as LAVIS's cannot be trained without it."""

    def make(model: Any, **changes: Any) -> Any:
        adapter, host_class = model.adapter, model.host_class
        cfg = settings(model.arch, **changes)
        parts = {name: OmegaConf.to_container(cfg.get(name)) if name in cfg else {} for name in ("vision", "text", "decoder")}
        arguments = adapter.host_arguments(host_class, model.arch, cfg, **parts, options={})
        if "use_distill" in arguments and "retrieval" not in model.arch:
            arguments |= {"use_distill": True, "alpha": 0.0}
        methods = {"init_tokenizer": lambda self: model.tokenizer, **adapter.host_methods}
        own = type(host_class.__name__, (host_class,), methods)(**arguments)
        weights = {key: value for key, value in model.state_dict().items() if not key.startswith("policy.")}
        missing, unexpected = own.load_state_dict(weights, strict=False)
        assert not unexpected and all("_m." in key for key in missing)
        return own.train(model.training)

    return make


@pytest.fixture
def expand_once(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Lets a decoder of LAVIS search with beams: transformers repeats what LAVIS has repeated already."""

    def make(decoder: Any) -> None:
        expand = type(decoder)._expand_inputs_for_generation

        def once(expand_size=1, is_encoder_decoder=False, input_ids=None, **others):
            read = {name: others.pop(name) for name in list(others) if name.startswith("encoder_")}
            ids, others = expand(expand_size, is_encoder_decoder, input_ids, **others)
            return ids, {**others, **read}

        monkeypatch.setattr(decoder, "_expand_inputs_for_generation", once)

    return make


@pytest.fixture
def batch() -> Callable:
    """A batch as LAVIS's data sets collate it."""

    def make(model: Any, seed: int = 0, texts: list[str] = TEXTS) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        each = model.adapter.images_per_text
        names = ["image"] if each == 1 else [f"image{i}" for i in range(each)]
        images = {name: torch.randn(len(texts), 3, 16, 16, generator=generator) for name in names}
        if "vqa" in model.arch:
            counts = torch.tensor([2, 1, 1])[: len(texts)]
            answers = {"answer": ANSWERS[: int(counts.sum())], "n_answers": counts}
            answers["weight"] = torch.tensor([0.7, 0.3, 1.0, 1.0])[: int(counts.sum())]
        elif "retrieval" in model.arch:
            answers = {"image_id": torch.tensor([4, 2, 4])[: len(texts)]}
        else:
            answers = {"label": torch.tensor([1, 0, 1])[: len(texts)]}
        if model.arch == "blip_caption":
            texts = [f"a picture of {text}" for text in texts]
        place = {"epoch": 0, "iters": 0, "num_iters_per_epoch": 4}
        return {**images, "text_input": list(texts), **answers, **place}

    return make
