"""What adapters need of LAVIS and of its models' parts: importing it, its constructors' arguments, views of its ViT."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import ImageFile
from torch import nn
from transformers.utils import logging

from smarttrim_mm.layers.views import AttentionView, LayerView, MlpView, Projection


def import_lavis(name: str) -> Any:
    """Imports LAVIS, or a part of it, or of what it needs.

    On import LAVIS lets Pillow accept truncated images, and silences transformers; both are put back.

    Args:
        name: The module.

    Raises:
        ImportError: With the lines that install LAVIS.
    """
    truncated, verbosity = ImageFile.LOAD_TRUNCATED_IMAGES, logging.get_verbosity()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"a LavisBackbone needs LAVIS, and {name} cannot be imported ({error}). Install it from the repository's folder:\n"
            "  pip install -r requirements/lavis.txt\n  pip install --no-deps salesforce-lavis==1.0.2"
        ) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated
        logging.set_verbosity(verbosity)


def host_options(
    host_class: Any,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] = {},
    besides: Iterable[str] = (),
) -> dict[str, Any]:
    """Arguments of a LAVIS constructor that are not its parts.

    Args:
        host_class: LAVIS's class.
        settings: The section ``model`` of a LAVIS config file; it comes before the defaults.
        options: What was asked for; it comes before all.
        defaults: In place of the constructor's own.
        besides: The arguments that are parts.

    Raises:
        TypeError: If the constructor takes no such option.
    """
    named = list(inspect.signature(host_class.__init__).parameters.values())[1:]
    accepted = [each.name for each in named if each.name not in besides]
    unknown = sorted(options.keys() - set(accepted))
    if unknown:
        raise TypeError(f"LAVIS's {host_class.__name__} has no {', '.join(unknown)}; it has {', '.join(accepted)}")
    own = {each.name: each.default for each in named if each.name in accepted and each.default is not each.empty}
    return {**own, **defaults, **{name: settings[name] for name in accepted if name in settings}, **options}


def refuse_decoder(decoder: Mapping[str, Any], arch: str) -> None:
    """Refuses settings of a decoder that a model does not have.

    Raises:
        ValueError: If there are any.
    """
    if decoder:
        raise ValueError(f"decoder is {dict(decoder)}; LAVIS's {arch} has no decoder. Leave it out")


def small(depth: int, *, vision: Mapping[str, Any] | None = None, text: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of a small model for tests: streams of different widths, dropout on.

    Args:
        depth: Layers of the text encoder.
        vision: More arguments of the image encoder.
        text: More entries of the BERT configuration.
    """
    image = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "drop_path_rate": 0.0}
    words = {
        "vocab_size": 120,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_hidden_layers": depth,
    }
    return {"vision": {**image, **(vision or {})}, "text": {**words, "max_position_embeddings": 24, **(text or {})}}


def vit_view(block: Any, stream: str) -> LayerView:
    """The view of a block of LAVIS's ViT.

    Args:
        block: The block.
        stream: Name of its stream.
    """
    inner, mlp, width = block.attn, block.mlp, block.attn.proj.in_features
    drop_path = getattr(block.drop_path, "drop_prob", 0.0)
    q, k, v = (Projection(inner.qkv, slice(i * width, (i + 1) * width)) for i in range(3))
    attention = AttentionView(
        name=f"{stream}.self",
        reads=stream,
        q=q,
        k=k,
        v=v,
        out=inner.proj,
        norm=block.norm1,
        heads=inner.num_heads,
        attention_dropout=inner.attn_drop.p,
        dropout=inner.proj_drop.p,
        drop_path=drop_path,
    )
    feed_forward = MlpView(
        fc1=mlp.fc1,
        act=nn.Sequential(mlp.act, mlp.drop),
        fc2=mlp.fc2,
        norm=block.norm2,
        dropout=mlp.drop.p,
        drop_path=drop_path,
    )
    return LayerView((attention,), feed_forward, pre_norm=True, owner=block)


def small_queue(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a small model for tests, with a queue for batches of 2, 3, 4, 6 and 8."""
    return {**sizes, "queue_size": 24, "embed_dim": 12}
