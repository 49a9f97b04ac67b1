"""mmpretrain's image classifiers with a ``VisionTransformer``: ViT, DeiT, and the ViT of CLIP, by mmpretrain's configs.

The model is built by mmpretrain. It keeps its parameters, its state dict below ``host.``, and its forward, which is
:meth:`MMPretrainClassifier.host_forward`. There is no text: tokens are scored by themselves and by the class token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from smarttrim_mm.backbones.mmpretrain import MMPretrainBackbone
from smarttrim_mm.backbones.mmpretrain_host import build_host, vit_view
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.registry import MMPRETRAIN_MODELS
from smarttrim_mm.structures import PaddedLayout, TokenStream

_HEADS = ("VisionTransformerClsHead", "LinearClsHead")
_OUT_TYPES = ("cls_token", "avg_featmap")


@MMPRETRAIN_MODELS.register_module("ImageClassifier")
class MMPretrainClassifier(MMPretrainBackbone):
    """An ``ImageClassifier`` of mmpretrain: a ``VisionTransformer``, no neck, and a linear head.

    With ``out_type='avg_featmap'`` the head reads the mean of the patches that are kept; where none is, 0.

    Args:
        model: mmpretrain's config of the model, as the ``model`` of its config files.
        checkpoint: Where a training starts: a public checkpoint of mmpretrain, read by :meth:`init_weights`.

    Raises:
        ImportError: If mmpretrain cannot be imported.
        ValueError: If the model is not of this kind, or asks for what is not run here.
    """

    share_images = True
    host_uses_sdpa = True

    def __init__(self, *, model: Mapping[str, Any], checkpoint: str | None = None) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.host = build_host(model)
        _check_host(self.host)

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """See :class:`~smarttrim_mm.backbones.mmpretrain.MMPretrainBackbone`: dropout on, layers of every kind."""
        arch = {"embed_dims": 32, "num_layers": 3, "num_heads": 4, "feedforward_channels": 128}
        vit = {"type": "VisionTransformer", "arch": arch, "img_size": 24, "patch_size": 4, "drop_rate": 0.1}
        linear = {"type": "LinearClsHead", "num_classes": 7, "in_channels": 32}
        clip = {"pre_norm": True, "norm_cfg": {"type": "LN", "eps": 1e-5}, "layer_cfgs": {"act_cfg": {"type": "QuickGELU"}}}
        kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "class token": ({"drop_path_rate": 0.2}, {**linear, "type": "VisionTransformerClsHead", "hidden_dim": 20}),
            "averaged": ({"out_type": "avg_featmap", "final_norm": False, "layer_scale_init_value": 0.5}, linear),
            "CLIP": ({**clip, "qkv_bias": False}, linear),
        }
        return {
            name: {"model": {"type": "ImageClassifier", "backbone": {**vit, **own}, "head": head}}
            for name, (own, head) in kinds.items()
        }

    @property
    def input_format(self) -> dict[str, int]:
        """Sizes of the inputs and answers, see :func:`smarttrim_mm.utils.random_inputs.random_inputs`."""
        return {"image_size": self.host.backbone.img_size[0], "num_classes": self.host.head.num_classes}

    @cached_property
    def steps(self) -> dict[str, list[LayerStep]]:
        """Views of all layers in the order of execution, of the stage ``image``."""
        layers = self.host.backbone.layers
        return {"image": [LayerStep(f"image.{i}", {"image": vit_view(layer, "image")}) for i, layer in enumerate(layers)]}

    def forward(self, inputs: VLMInputs, execution: Execution) -> Tensor:
        """Runs the model under the execution's policy.

        Args:
            inputs: The batch.
            execution: Policy, kind of execution, and record.

        Returns:
            Logits, [B, C].

        Raises:
            ValueError: If the batch has texts.
        """
        return self.host.head(self._features(inputs, execution))

    def predict(self, inputs: VLMInputs, execution: Execution, data_samples: Sequence[DataSample]) -> None:
        """Fills in what mmpretrain's own ``predict`` does: ``pred_score`` [C] and ``pred_label`` [1]."""
        self.host.head.predict(self._features(inputs, execution), data_samples)

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """The host's own forward: logits [B, C]."""
        _check_inputs(inputs)
        return self.host(inputs.images, mode="tensor")

    def _features(self, inputs: VLMInputs, execution: Execution) -> tuple[Tensor]:
        """What the head reads, [B, D], as mmpretrain passes it."""
        _check_inputs(inputs)
        vit, head = self.host.backbone, self.host.head
        patches, grid = vit.patch_embed(inputs.images)
        x = torch.cat([vit.cls_token.expand(len(patches), -1, -1), patches], 1)
        sizes = vit.patch_resolution, grid
        x = x + vit.resize_pos_embed(vit.pos_embed, *sizes, vit.interpolate_mode, vit.num_extra_tokens)
        count = vit.patch_embed.projection.weight.numel() * patches.shape[1]
        execution.linear(count, name="image.patches", instances=len(patches))
        image = execution.start(TokenStream.start(vit.pre_norm(vit.drop_after_pos(x)), ids=inputs.image_ids))
        image = execution.run(self.steps["image"], {"image": image})["image"]
        if vit.final_norm:
            image = image.map(vit.ln1)
        count = sum(part.weight.numel() for part in head.modules() if isinstance(part, nn.Linear))
        execution.linear(count, name="head.classes")
        return (image.guide() if vit.out_type == "cls_token" else vit.ln2(mean_of_patches(image)),)


def mean_of_patches(image: TokenStream) -> Tensor:
    """The mean of the kept tokens but the first, [B, D]; 0 where none is left."""
    _, patches = image.split(1)
    x, layout = patches.x.float(), patches.layout  # sums of half precision overflow, or lose their last terms
    if isinstance(layout, PaddedLayout):
        total = (x * layout.gate.unsqueeze(-1)).sum(1)
    else:
        total = x.new_zeros(layout.batch_size, x.shape[1]).index_add_(0, layout.instance, x)
    return (total / layout.counts().clamp(min=1).unsqueeze(-1)).to(patches.x.dtype)


def _check_inputs(inputs: VLMInputs) -> None:
    if len(inputs.input_ids):
        raise ValueError(
            f"the batch has {len(inputs.input_ids)} texts, and an image classifier reads none: take a data set of images, and "
            "data_preprocessor=dict(type='ImagePreprocessor')"
        )


def _check_host(host: Any) -> None:
    """Refuses what is not run here, or could not be trimmed."""
    kinds = {"model": type(host).__name__, "backbone": _kind(host, "backbone"), "neck": _kind(host, "neck")}
    wanted = {"model": "ImageClassifier", "backbone": "VisionTransformer", "neck": "None"}
    for part, kind in kinds.items():
        if kind != wanted[part]:
            raise ValueError(f"mmpretrain's {part} is {kind}; expected {wanted[part]}, whose tokens can be left out")
    if _kind(host, "head") not in _HEADS:
        raise ValueError(f"mmpretrain's head is {_kind(host, 'head')}; expected one of {', '.join(_HEADS)}")
    vit, last = host.backbone, len(host.backbone.layers) - 1
    if vit.cls_token is None:
        raise ValueError("with_cls_token is False; expected True: no policy may drop the class token, and it guides them")
    if vit.out_type not in _OUT_TYPES:
        raise ValueError(
            f"out_type is {vit.out_type!r}; expected one of {', '.join(map(repr, _OUT_TYPES))}: a map of all patches has holes "
            "where tokens are left out"
        )
    if list(vit.out_indices) != [last]:
        raise ValueError(f"out_indices is {list(vit.out_indices)}; expected the last layer alone, [{last}] or -1")
    if getattr(host.data_preprocessor, "batch_augments", None) is not None:
        raise ValueError(
            "train_cfg.augments is set in mmpretrain's model, whose own data_preprocessor is not run here: give them to "
            "data_preprocessor.batch_augments instead"
        )


def _kind(host: Any, part: str) -> str:
    module = getattr(host, part, None)
    return "None" if module is None else type(module).__name__
