"""BLIP-2's first stage (Li et al., arXiv 2301.12597) as LAVIS has it: a ViT, frozen or not, and a Q-Former that reads it.

A Q-Former is a BERT on a fixed number of learned queries and a text. Both attend to each other as one stream, ``text``, whose
first tokens are the queries: no policy drops them. The queries alone read the image, in every second layer, and have an MLP of
their own in each.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BertConfig

from smarttrim_mm.backbones.lavis import LavisClassifier
from smarttrim_mm.backbones.lavis_checkpoint import load_public
from smarttrim_mm.backbones.lavis_host import GivenTokens, import_lavis, small
from smarttrim_mm.backbones.lavis_vision import ClipVision, EvaVision, new_vision, vision_of
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.bert_views import bert_view, qformer_view
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.models.conversion import Conversion
from smarttrim_mm.registry import LAVIS_ARCHS
from smarttrim_mm.structures import TokenStream

_VOCABULARY = 30523  # bert-base-uncased and [DEC]


def _take_vision(_: Any, encoder: nn.Module, *__: Any) -> tuple[nn.Module, nn.Module]:
    """In place of LAVIS's method, which downloads one: the encoder, given as the constructor's ``vit_model``."""
    return encoder, import_lavis("lavis.models.blip2_models.blip2").LayerNorm(encoder.num_features)


def _make_qformer(_: Any, config: BertConfig, vision_width: int, cross_attention_freq: int) -> tuple[nn.Module, nn.Parameter]:
    """Likewise: the Q-Former of a configuration, given as ``num_query_token``."""
    config.encoder_width, config.cross_attention_freq = vision_width, cross_attention_freq
    qformer = import_lavis("lavis.models.blip2_models.Qformer").BertLMHeadModel(config)
    queries = torch.zeros(1, config.query_length, config.hidden_size).normal_(std=config.initializer_range)
    return qformer, nn.Parameter(queries)


@LAVIS_ARCHS.register_module("blip2_qformer")
class Blip2Qformer(LavisClassifier):
    """Whether a text fits an image, class 1 if it does: the mean over the queries of what ``itm_head`` says.

    Args:
        vision: Arguments of LAVIS's ViT: of EVA's class (``embed_dim``, ``depth``, ``num_heads``), or, with
            ``vit_model='clip_L'``, of CLIP's (``width``, ``layers``, ``heads``); what is left out is as in LAVIS.
        text: Entries of the Q-Former's BERT configuration.
        vision_checkpoint: The file of the ViT that LAVIS downloads (``eva_vit_g.pth``, ``clip_vit_L.pth``), for a
            ``checkpoint`` that has none because it was frozen.
        **kwargs: Those of :class:`~smarttrim_mm.backbones.lavis.LavisBackbone`. LAVIS's ``vit_precision`` is ``'fp32'`` here
            unless it is given; ``'fp16'`` needs autocast.
    """

    lavis_name: str | None = "blip2"
    head_name = "itm_head"
    encodes = True  # the queries come before the text in the multi-modal encoder
    host_methods = {"init_vision_encoder": classmethod(_take_vision), "init_Qformer": classmethod(_make_qformer)}
    vision_checkpoint: str | None = None

    def __init__(self, *, vision_checkpoint: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vision_checkpoint = vision_checkpoint

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        sizes = small(4)
        vision = {"input_resolution": 16, "patch_size": 4, "width": 24, "layers": 3, "heads": 4}
        return {"shared images": {**sizes, "vision": vision, "vit_model": "clip_L", "num_query_token": 5}}

    @classmethod
    def host_arguments(
        cls,
        host_class: Any,
        arch: str,
        settings: Any,
        vision: Mapping[str, Any],
        text: Mapping[str, Any],
        decoder: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What LAVIS's constructor takes, see :class:`~smarttrim_mm.backbones.lavis.LavisBackbone`.

        For the methods that take the place of LAVIS's, ``vit_model`` is the ViT, new, and ``num_query_token`` the Q-Former's
        configuration.
        """
        if decoder:
            raise ValueError(f"decoder is {dict(decoder)}; LAVIS's {arch} has no decoder. Leave it out")
        accepted = {name: each.default for name, each in list(inspect.signature(host_class.__init__).parameters.items())[1:]}
        unknown = sorted(options.keys() - accepted.keys())
        if unknown:
            raise TypeError(f"LAVIS's {host_class.__name__} has no {', '.join(unknown)}; it has {', '.join(accepted)}")
        found = {
            **accepted,
            **{name: settings[name] for name in accepted if name in settings},
            "img_size": settings.image_size,
            "vit_precision": "fp32",
            **options,
        }
        config = BertConfig(**{"vocab_size": _VOCABULARY, **text, "add_cross_attention": True})
        config.query_length = found["num_query_token"]
        return {**found, "vit_model": new_vision(found, vision), "num_query_token": config}

    def host_tokenizer(self, arguments: Mapping[str, Any]) -> GivenTokens:
        config = arguments["num_query_token"]
        return GivenTokens(config.vocab_size, config.pad_token_id, encodes=False)

    def load(self, path: str) -> Conversion:
        return load_public(self.host, path, vision=self.vision_checkpoint)

    @property
    def text_config(self) -> Any:
        return self.host.Qformer.config

    @property
    def queries(self) -> int:
        """Number of queries."""
        return self.host.query_tokens.shape[1]

    @cached_property
    def vision(self) -> EvaVision | ClipVision:
        """The image encoder's adapter."""
        return vision_of(self.host.visual_encoder)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.vision.image_size

    def check_host(self) -> None:
        """Refuses a host that cannot be trimmed.

        Raises:
            ValueError: If its image encoder has parts that views do not cover.
        """
        assert self.vision

    @cached_property
    def steps(self) -> dict[str, list[LayerStep]]:
        """Views of all layers by stage, in the order of execution: ``image`` and ``fusion``."""
        width, fusion = self.host.visual_encoder.num_features, []
        for i, layer in enumerate(self.host.Qformer.bert.encoder.layer):
            reads = ["image"] if layer.has_cross_attention else []
            view = qformer_view(layer, "text", self.queries, *reads)
            fusion.append(LayerStep(f"fusion.{i}", {"text": view}, memories=dict.fromkeys(reads, width)))
        return {"image": self.image_steps(), "fusion": fusion}

    def image_steps(self) -> list[LayerStep]:
        guides = {"text": self.text_config.hidden_size} if self.text_first else {}
        return [LayerStep(f"image.{i}", {"image": view}, guides) for i, view in enumerate(self.vision.views("image"))]

    @cached_property
    def ahead(self) -> list[LayerStep]:
        """Views of the Q-Former's layers on a text alone."""
        layers = self.host.Qformer.bert.encoder.layer
        return [LayerStep(f"ahead.{i}", {"text": bert_view(layer, "text")}) for i, layer in enumerate(layers)]

    def embed_text(self, inputs: VLMInputs, first: Tensor, encodes: bool) -> TokenStream:
        """Embeddings of the texts, padded: [A, T, D]; with the queries before them if ``encodes``, [A, queries + T, D]."""
        rows = first if inputs.text_index is None else inputs.text_index[first]
        mask, special = inputs.text_mask[rows], inputs.special_mask[rows]
        queries = None
        if encodes:
            queries = self.host.query_tokens.expand(len(rows), -1, -1)
            there = mask.new_ones(queries.shape[:2])
            mask, special = torch.cat([there, mask], 1), torch.cat([there, special], 1)
        x = self.host.Qformer.bert.embeddings(input_ids=inputs.input_ids[rows], query_embeds=queries)
        return TokenStream.start(x, ids=inputs.sample_ids[first], valid=mask, special=special)

    def read_images(self, inputs: VLMInputs, execution: Execution, guides: Mapping[str, Tensor]) -> TokenStream:
        vision, rows = self.vision, inputs.image_index
        count = vision.patch_weight.numel() * vision.patches
        execution.linear(count, name="image.patches", instances=len(inputs.images), rows=rows)
        image = execution.start(TokenStream.start(vision.embed(inputs.images), ids=inputs.image_ids))
        image = execution.run(self.steps["image"], {"image": image}, guides=guides, rows=rows)["image"]
        return image.map(self.host.ln_vision)

    def forward(self, inputs: VLMInputs, execution: Execution) -> Tensor:
        """See :class:`~smarttrim_mm.backbones.lavis.LavisClassifier`."""
        return self.match(self.encode(inputs, execution), execution)

    def match(self, text: TokenStream, execution: Execution) -> Tensor:
        """The head's answer to queries and texts that have read the images, [B, 2]."""
        head = self.host.itm_head
        execution.linear(head.weight.numel() * self.queries, name="head.itm_head")
        return head(self.queries_of(text)).mean(1)

    def queries_of(self, text: TokenStream) -> Tensor:
        """The queries, [B, queries, D]."""
        queries, _ = text.split(self.queries)
        return queries.x.view(text.layout.batch_size, self.queries, -1)

    def image_features(self, queries: Tensor, execution: Execution) -> Tensor:
        """What images are compared with texts by, given the queries that have read them: [I, queries, E]."""
        project = self.host.vision_proj
        execution.linear(project.weight.numel() * self.queries, name="head.vision_proj")
        return normalize(project(queries), dim=-1)

    def text_features(self, inputs: VLMInputs, execution: Execution) -> Tensor:
        """What texts are compared with images by, [B, E]: the Q-Former runs on them alone, whole."""
        project, pairs = self.host.text_proj, torch.arange(len(inputs.sample_ids), device=inputs.sample_ids.device)
        words = execution.start(self.embed_text(inputs, pairs, encodes=False))
        first = execution.run(self.ahead, {"text": words})["text"].guide()
        execution.linear(project.weight.numel(), name="head.text_proj")
        return normalize(project(first), dim=-1)

    def ask(self, image: TokenStream, execution: Execution) -> TokenStream:
        """Runs the Q-Former on images without texts."""
        queries = self.host.query_tokens.repeat(image.layout.batch_size, 1, 1)
        there = torch.ones(queries.shape[:2], dtype=torch.bool, device=queries.device)
        x = self.host.Qformer.bert.embeddings(query_embeds=queries)
        text = execution.start(TokenStream.start(x, ids=image.layout.ids, special=there))
        return execution.run(self.steps["fusion"], {"text": text, "image": image})["text"]

    def call_host(self, samples: dict[str, Any]) -> Tensor:
        # LAVIS's class has the parts, and a subclass of it this forward
        matching = import_lavis("lavis.models.blip2_models.blip2_image_text_matching").Blip2ITM
        return matching.forward(self.host, samples, match_head="itm")


@LAVIS_ARCHS.register_module("blip2_image_text_matching")
class Blip2Matching(Blip2Qformer):
    """The same model, for matching alone."""

    lavis_name = None

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        sizes = small(3, vision={"drop_path_rate": 0.3})
        return {"text first": {**sizes, "num_query_token": 2, "freeze_vit": False, "text_first": True}}
