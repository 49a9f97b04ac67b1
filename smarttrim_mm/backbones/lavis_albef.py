"""ALBEF (Li et al., arXiv 2107.07651) as LAVIS has it: a ViT, and a BERT whose upper layers read the image.

The momentum copies of ``use_distill=True`` are kept and never run, but in retrieval.
"""

from typing import Any

import torch
from torch import Tensor, nn

from smarttrim_mm.backbones.fusion_answers import SMALL_ANSWERS
from smarttrim_mm.backbones.fusion_retrieval import Encoded
from smarttrim_mm.backbones.lavis import LavisAnswerer, LavisClassifier, LavisRetriever
from smarttrim_mm.backbones.lavis_host import import_lavis, small, small_queue
from smarttrim_mm.registry import LAVIS_ARCHS


@LAVIS_ARCHS.register_module("albef_classification")
class AlbefClassification(LavisClassifier):
    """One image, one text, ``num_classes`` answers: SNLI-VE."""

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        sizes = small(3, text={"fusion_layer": 1})
        return {"text first": {**sizes, "num_classes": 7, "use_distill": True, "text_first": True}}


def share_cross_attention(_: Any, encoder: Any) -> None:
    """Ties keys and values of neighbouring cross-attentions, at any depth; LAVIS's own method ties layers 6 to 17."""
    fusing = [layer.crossattention.self for layer in encoder.layer if hasattr(layer, "crossattention")]
    for first, second in zip(fusing[::2], fusing[1::2], strict=True):
        for own, other in ((first.key, second.key), (first.value, second.value)):
            own.weight, own.bias = other.weight, other.bias


@LAVIS_ARCHS.register_module("albef_nlvr")
class AlbefNLVR(LavisClassifier):
    """NLVR2: six uni-modal layers, then twelve that read the first and the second image in turn.

    Two neighbours share their keys and values.
    """

    images_per_text = 2
    text_defaults = {"num_hidden_layers": 18}
    host_methods = {"share_cross_attention": share_cross_attention}

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {"shared images": {**small(5, vision={"depth": 1, "mlp_ratio": 1}, text={"fusion_layer": 1}), "num_classes": 7}}

    @staticmethod
    def text_class() -> type[nn.Module]:
        return import_lavis("lavis.models.med").BertModel

    def reads(self, index: int) -> tuple[str, ...]:
        return (f"image{index % 2}",)


@LAVIS_ARCHS.register_module("albef_vqa")
class AlbefVQA(LavisAnswerer):
    """Answers about an image: a decoder of six layers reads the question, which has read the image."""

    begins_anew = False
    decoder_defaults = {"fusion_layer": 0, "num_hidden_layers": 6}
    option_defaults = {"max_txt_len": 25}
    encoder_outputs = 4

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        sizes = small(3, text={"fusion_layer": 1})
        return {"shared images": {**sizes, "answers": SMALL_ANSWERS, "decoder": {"num_hidden_layers": 2}, "use_distill": True}}

    def host_states(self, samples: dict[str, Any]) -> Tensor:
        # LAVIS's forward_encoder would move the momentum copies
        image = self.host.visual_encoder.forward_features(samples["image"])
        return self.host.text_encoder.forward_automask(samples["text_input"], image).last_hidden_state


@LAVIS_ARCHS.register_module("albef_retrieval")
class AlbefRetrieval(LavisRetriever):
    """Images and texts of COCO and Flickr30K: what the uni-modal layers make of a text is compared, and goes on to be fused."""

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {"shared images": small_queue(small(3, text={"fusion_layer": 1}))}

    def hardness(self, texts: Encoded, images: Encoded, contrast: Tensor) -> tuple[Tensor, Tensor]:
        of_images, of_texts = contrast[:, : len(contrast) // 2].chunk(2)  # with the momentum features of the batch
        return of_texts, of_images

    def host_fusion(self, text: Any, alone: Tensor, images: Tensor) -> Tensor:
        mask = torch.ones(images.shape[:2], dtype=torch.long, device=images.device)
        states = self.host.text_encoder(
            encoder_embeds=alone,
            attention_mask=text.attention_mask,
            encoder_hidden_states=images,
            encoder_attention_mask=mask,
            return_dict=True,
            mode="fusion",
        )
        return states.last_hidden_state[:, 0]
