"""BLIP (Li et al., arXiv 2201.12086) as LAVIS has it: a ViT, and a BERT whose every layer reads the image."""

from typing import Any

from torch import Tensor, nn

from smarttrim_mm.backbones.fusion_answers import SMALL_ANSWERS
from smarttrim_mm.backbones.fusion_retrieval import TwiceReadRetriever
from smarttrim_mm.backbones.lavis import LavisAnswerer, LavisCaptioner, LavisClassifier, LavisRetriever
from smarttrim_mm.backbones.lavis_host import import_lavis, small, small_queue
from smarttrim_mm.registry import LAVIS_ARCHS

_BEGIN, _END = 101, 102  # of small texts


@LAVIS_ARCHS.register_module("blip_classification")
class BlipClassification(LavisClassifier):
    """One image, one text, ``num_classes`` answers."""

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {"text first": {**small(2, vision={"drop_path_rate": 0.3}), "num_classes": 7, "text_first": True}}


@LAVIS_ARCHS.register_module("blip_image_text_matching")
class BlipMatching(LavisClassifier):
    """Whether a text fits an image: class 1 if it does."""

    head_name = "itm_head"
    encodes = True

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {"shared images": small(2)}

    def call_host(self, samples: dict[str, Any]) -> Tensor:
        return self.host(samples, match_head="itm")


@LAVIS_ARCHS.register_module("blip_nlvr")
class BlipNLVR(LavisClassifier):
    """NLVR2: a text about two images, each read by a cross-attention of its own.

    The outputs of the two are averaged in the first six layers, and concatenated and mapped in the others.
    """

    images_per_text = 2
    encodes = True

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {"shared images": {**small(7, vision={"depth": 1, "mlp_ratio": 1}), "num_classes": 7}}

    @staticmethod
    def text_class() -> type[nn.Module]:
        return import_lavis("lavis.models.blip_models.nlvr_encoder").BertModel

    def reads(self, index: int) -> tuple[str, ...]:
        return ("image0", "image1")


@LAVIS_ARCHS.register_module("blip_vqa")
class BlipVQA(LavisAnswerer):
    """Answers about an image: a decoder reads the question, which has read the image."""

    encodes = True

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {"text first": {**small(2), "answers": SMALL_ANSWERS, "text_first": True}}


@LAVIS_ARCHS.register_module("blip_caption")
class BlipCaption(LavisCaptioner):
    """A text about an image: a decoder reads the image."""

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {"shared images": {**small(2), "prompt": [_BEGIN, 7, 9, _END]}}


@LAVIS_ARCHS.register_module("blip_retrieval")
class BlipRetrieval(TwiceReadRetriever, LavisRetriever):
    """Images and texts of COCO and Flickr30K."""

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {"shared images": small_queue(small(2))}
