"""mmpretrain's BLIP with torch's ``scaled_dot_product_attention`` in its BERTs: a baseline beside its own forward."""

from __future__ import annotations

from functools import partial

from torch import nn

from smarttrim_mm.backbones.lavis_sdpa import SdpaAttention, attend_text


class BertSdpa(SdpaAttention):
    """As :class:`~smarttrim_mm.backbones.lavis_sdpa.SdpaAttention`, for mmpretrain's BERT, whose attention is LAVIS's.

    mmpretrain's ViT calls ``scaled_dot_product_attention`` by itself.

    Args:
        host: mmpretrain's model.
    """

    def __init__(self, host: nn.Module) -> None:
        from mmpretrain.models.multimodal.blip.language_model import BertSelfAttention

        found = [module for module in host.modules() if type(module) is BertSelfAttention]
        self.forwards = [(module, partial(attend_text, module)) for module in found]
