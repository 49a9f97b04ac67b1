"""BLIP-2's first stage (Li et al., arXiv 2301.12597) as LAVIS has it: a ViT, frozen or not, and a Q-Former that reads it.

A Q-Former is a BERT on a fixed number of learned queries and a text. Both attend to each other as one stream, ``text``, whose
first tokens are the queries: no policy drops them. The queries alone read the image, in every second layer, and have an MLP of
their own in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot
from transformers import BertConfig

from smarttrim_mm.backbones.fusion import linears
from smarttrim_mm.backbones.fusion_retrieval import Encoded, check_single_pairs, text_ids
from smarttrim_mm.backbones.given_tokens import GivenTokens
from smarttrim_mm.backbones.lavis import LavisClassifier
from smarttrim_mm.backbones.lavis_checkpoint import load_public
from smarttrim_mm.backbones.lavis_host import host_options, import_lavis, refuse_decoder, small
from smarttrim_mm.backbones.lavis_vision import new_vision
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.bert_views import bert_view, qformer_view
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.models.conversion import Conversion
from smarttrim_mm.pairs import PairLogits, PairTargets, draw_negatives
from smarttrim_mm.registry import LAVIS_ARCHS
from smarttrim_mm.structures import TokenStream

_VOCABULARY = 30523  # bert-base-uncased and [DEC]
_SMOOTHING = 0.1  # of LAVIS's contrast
_LEAST = 1e-4  # chance of a negative, before scaling, as LAVIS has it


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

    It is trained as a classifier, or as LAVIS's pre-training does (``ContrastAndMatching``): contrast, matching of hard
    negatives, and texts given word by word, by LAVIS's own Q-Former as a decoder, whole.

    Args:
        vision: Arguments of LAVIS's ViT: of EVA's class (``embed_dim``, ``depth``, ``num_heads``), or, with
            ``vit_model='clip_L'``, of CLIP's (``width``, ``layers``, ``heads``); what is left out is as in LAVIS.
        text: Entries of the Q-Former's BERT configuration.
        vision_checkpoint: The file of the ViT that LAVIS downloads (``eva_vit_g.pth``, ``clip_vit_L.pth``), for a
            ``checkpoint`` that has none because it was frozen.
        ranks_texts: Whether it is evaluated on retrieval: scores of all pairs, or of the most similar ones, are then the
            matching head's logit of "fits" plus the similarity of image and text, as in LAVIS's test.
        **kwargs: Those of :class:`~smarttrim_mm.backbones.lavis.LavisBackbone`. LAVIS's ``vit_precision`` is ``'fp32'`` here
            unless it is given; ``'fp16'`` needs autocast.

    Raises:
        ValueError: If ``text_first`` and ``ranks_texts`` are both asked for, or the image encoder cannot be trimmed.
    """

    lavis_name: str | None = "blip2"
    head_name = "itm_head"
    encodes = True  # the queries come before the text in the multi-modal encoder
    host_methods = {"init_vision_encoder": classmethod(_take_vision), "init_Qformer": classmethod(_make_qformer)}
    vision_checkpoint: str | None = None
    ranks_texts = False

    def __init__(self, *, vision_checkpoint: str | None = None, ranks_texts: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if ranks_texts and self.text_first:
            raise ValueError(
                "text_first=True and ranks_texts=True exclude each other: retrieval scores every image with every text, from "
                "one encoding of each image, which a text's guidance would make that text's alone. Set one of them to False"
            )
        self.vision_checkpoint = vision_checkpoint
        self.ranks_texts = ranks_texts

    @classmethod
    def around(cls, host: Any, *, arch: str, text_first: bool = False, share_images: bool | None = None) -> Blip2Qformer:
        """See :class:`~smarttrim_mm.backbones.lavis.LavisBackbone`; it ranks whenever no text guides it."""
        backbone = super().around(host, arch=arch, text_first=text_first, share_images=share_images)
        assert isinstance(backbone, Blip2Qformer)
        backbone.ranks_texts = not text_first
        return backbone

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
        refuse_decoder(decoder, arch)
        # config files have the size under another name, and the precision of a GPU
        options = {"img_size": settings.image_size, "vit_precision": "fp32", **options}
        found = host_options(host_class, settings, options)
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

    @cached_property
    def ahead(self) -> list[LayerStep]:
        """Views of the Q-Former's layers on a text alone, whole, whatever was cut of one before."""
        layers, anew = self.host.Qformer.bert.encoder.layer, frozenset({"text"})
        return [LayerStep(f"ahead.{i}", {"text": bert_view(layer, "text")}, anew=anew) for i, layer in enumerate(layers)]

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
        return super().read_images(inputs, execution, guides).map(self.host.ln_vision)

    def forward(self, inputs: VLMInputs, execution: Execution) -> Tensor | PairLogits:
        """Runs the model under the execution's policy.

        Args:
            inputs: The batch. Its targets choose what is returned.
            execution: Policy, kind of execution, and record.

        Returns:
            If the targets are :meth:`prepare`'s: contrast, matching and words of a training step. Of samples of several pairs,
            if it ranks, their scores, [G, pairs_per_sample]. Otherwise the matching head's logits, [G, 2].

        Raises:
            ValueError: If the samples have several pairs and it does not rank, or the images another size.
        """
        if isinstance(inputs.targets, PairTargets):
            return self._tell_apart(inputs, inputs.targets, execution)
        if inputs.pairs_per_sample == 1 or not self.ranks_texts:
            return self.match(self.encode(inputs, execution), execution)
        self.check_size(inputs)
        if not self.share_images:
            inputs = inputs.unshared_images()
        images = self.encode_images(inputs, execution)
        return self.fuse(self.encode_texts(inputs, execution), images, inputs, execution)

    def encode_texts(self, inputs: VLMInputs, execution: Execution) -> Encoded:
        """What every image is compared with, and token ids to fuse, with places for the queries: Q texts."""
        features = self.text_features(inputs, execution)
        places = torch.zeros_like(inputs.input_ids[:, :1]).expand(-1, self.queries)
        there = places == 0
        words = TokenStream.start(
            torch.cat([places, inputs.input_ids], 1),
            ids=text_ids(inputs),
            valid=torch.cat([there, inputs.text_mask], 1),
            special=torch.cat([there, inputs.special_mask], 1),
        )
        return Encoded(execution.start(words), features)

    def encode_images(self, inputs: VLMInputs, execution: Execution) -> Encoded:
        """What the queries read of the images, and every text is compared with: I images. ``inputs`` may be without texts."""
        image, rows = self.read_images(inputs, execution, {}), inputs.image_index
        queries, _ = self.ask(image, execution, rows)
        return Encoded(image, self.image_features(self.queries_of(queries), execution, rows))

    def similarities(self, texts: Encoded, images: Encoded) -> Tensor:
        """Cosines of all images with all texts, [I, Q]: without LAVIS's temperature, as in its test."""
        return likeness(images.features, texts.features)

    def fuse(self, texts: Encoded, images: Encoded, inputs: VLMInputs, execution: Execution) -> Tensor:
        """Scores pairs: fusion stage and matching head, plus similarity.

        Args:
            texts: What :meth:`encode_texts` returned, Q texts.
            images: What :meth:`encode_images` returned, I images.
            inputs: Says which text and image make a pair (``text_index``, ``image_index``), and the pairs' ``sample_ids``.
            execution: As in :meth:`forward`.

        Returns:
            Scores, [G, pairs_per_sample].
        """
        text, image = texts.expand(inputs.text_index, inputs.sample_ids), images.expand(inputs.image_index, inputs.sample_ids)
        streams = {"text": self._embed(text.stream), "image": image.stream}
        fits = self.match(execution.run(self.steps["fusion"], streams)["text"], execution)[:, 1]
        near = (image.features @ text.features.unsqueeze(-1)).squeeze(-1).amax(1)
        return (fits + near).view(-1, inputs.pairs_per_sample)

    def _embed(self, words: TokenStream) -> TokenStream:
        """Embeddings of token ids that have places for the queries before them."""
        ids, layout, embed = words.x, words.layout, self.host.Qformer.bert.embeddings
        places = (layout.positions() - self.queries).clamp(min=0)
        x = embed(input_ids=ids.view(-1, ids.shape[-1]), position_ids=places.view(1, -1)).view(*ids.shape, -1)
        first, others = replace(words, x=x).split(self.queries)
        queries = embed(query_embeds=self.host.query_tokens.repeat(layout.batch_size, 1, 1))
        return replace(words, x=layout.join(queries.reshape_as(first.x), others.x))

    def prepare(self, inputs: VLMInputs) -> VLMInputs:
        """The batch of a training step. As in LAVIS, each pair has an image of its own; the first pass chooses negatives.

        Raises:
            ValueError: If ``text_first`` is set, the batch has one pair, or its texts are alternatives of a sample.
        """
        if self.text_first:
            raise ValueError(
                f"text_first=True, and {self.arch} is trained to contrast: every image is compared with every text, which none "
                "could have guided. Set text_first=False, or take model.task_loss=dict(type='AnswerCrossEntropy')"
            )
        check_single_pairs(inputs, self.arch)
        pairs = torch.arange(len(inputs.sample_ids), device=inputs.sample_ids.device)
        if len(pairs) < 2:
            raise ValueError("the batch has 1 pair: there is no negative. Enlarge the batch")
        rank, processes = _process()
        right = one_hot(pairs + rank * len(pairs), processes * len(pairs)).float()
        wanted = (1 - _SMOOTHING) * right + _SMOOTHING / right.shape[1]
        words = inputs.input_ids[:, 1:][inputs.text_mask[:, 1:]]
        return replace(inputs, targets=PairTargets(pairs, wanted=wanted.repeat(2, 1), words=words))

    def _tell_apart(self, inputs: VLMInputs, targets: PairTargets, execution: Execution) -> PairLogits:
        """LAVIS's training step up to its losses. Random numbers are drawn in LAVIS's order."""
        self.check(inputs)
        if not self.share_images:
            inputs = inputs.unshared_images()
        ids, rows = inputs.sample_ids, inputs.image_index
        own = torch.arange(len(ids), device=ids.device)
        image = self.read_images(inputs, execution, {})
        queries, states = self.ask(image, execution, rows)
        seen = self.image_features(self.queries_of(queries), execution, rows)
        if rows is not None:
            image, queries = (stream.expand(rows, ids) for stream in (image, queries))
            seen, states = seen[rows], [x[rows] for x in states]
        said = self.text_features(inputs, execution)
        # in LAVIS no gradient goes through what is compared with, as it may be another process's
        to_images, to_texts = likeness(seen, _gather(said)), likeness(_gather(seen), said).t()
        contrast = torch.cat([to_images, to_texts]) / self.host.temp
        negatives = targets.negatives
        if negatives is None:
            begin = _process()[0] * len(own)
            of_images, of_texts = contrast[:, begin : begin + len(own)].chunk(2)
            negatives = draw_negatives((of_texts, of_images), targets.image_ids, _LEAST)
        thrice = ids.repeat(3)
        text = execution.start(self.embed_text(inputs, torch.cat([own, own, negatives.texts]), encodes=True)).with_ids(thrice)
        image = image.expand(torch.cat([own, negatives.images, own]), thrice)
        each = torch.arange(len(thrice), device=ids.device).view(3, -1).t()
        fused = execution.run(self.steps["fusion"], {"text": text, "image": image}, rows=each)["text"]
        match = self.match(fused, execution, times=3)
        words = self._write(inputs, queries, states, execution)
        return PairLogits(contrast, match, replace(targets, negatives=negatives), words)

    def _write(self, inputs: VLMInputs, queries: TokenStream, states: Sequence[Tensor], execution: Execution) -> Tensor:
        """LAVIS's decoder on the texts, after queries that have read the images without them.

        Keys and values of the queries, which LAVIS has cached, are made again, whatever heads were off.

        Args:
            inputs: The batch.
            queries: An instance a pair, for the count.
            states: What each layer was given of them, [B, queries, D] each.
            execution: Has the record.

        Returns:
            Logits of what follows each token, [K, V].
        """
        decoder, given = self.host.Qformer, inputs.text_mask
        execution.decoder(
            {"text": [step.layers["text"] for step in self.ahead]},
            queries,
            given.sum(1),
            torch.arange(len(given), device=given.device),
            name="decoder.words",
            per_token=sum(linear.weight.numel() for linear in linears(decoder.cls)),
            padded=given.shape[1],
            after=True,
        )
        attentions = [layer.attention.self for layer in decoder.bert.encoder.layer]
        ids = inputs.input_ids.clone()
        ids[:, 0] = self.host.tokenizer.bos_token_id
        logits: Tensor = decoder(
            ids,
            attention_mask=torch.cat([given.new_ones(len(given), self.queries), given], 1).long(),
            past_key_values=[
                tuple(one.transpose_for_scores(project(x)) for project in (one.key, one.value))
                for one, x in zip(attentions, states, strict=True)
            ],
            use_cache=False,
            return_dict=True,
        ).logits
        return logits[:, :-1][given[:, 1:]]

    def match(self, text: TokenStream, execution: Execution, times: int = 1) -> Tensor:
        """The head's answer to queries and texts that have read the images, [B, 2]; of each pair it is asked ``times``."""
        head = self.host.itm_head
        execution.linear(times * head.weight.numel() * self.queries, name="head.itm_head")
        return head(self.queries_of(text)).mean(1)

    def queries_of(self, text: TokenStream) -> Tensor:
        """The queries, [B, queries, D]."""
        queries, _ = text.split(self.queries)
        return queries.x.view(text.layout.batch_size, self.queries, -1)

    def image_features(self, queries: Tensor, execution: Execution, rows: Tensor | None = None) -> Tensor:
        """What images are compared with texts by, given the queries that have read them: [I, queries, E].

        Args:
            queries: [I, queries, D].
            execution: Has the record.
            rows: Which image each pair is about, long [B]; None: one each.
        """
        project = self.host.vision_proj
        count = project.weight.numel() * self.queries
        execution.linear(count, name="head.vision_proj", instances=len(queries), rows=rows)
        return normalize(project(queries), dim=-1)

    def text_features(self, inputs: VLMInputs, execution: Execution) -> Tensor:
        """What texts are compared with images by, [Q, E]: the Q-Former runs on them alone, whole."""
        project, rows = self.host.text_proj, inputs.text_index
        x = self.host.Qformer.bert.embeddings(input_ids=inputs.input_ids)
        words = TokenStream.start(x, ids=text_ids(inputs), valid=inputs.text_mask, special=inputs.special_mask)
        first = execution.run(self.ahead, {"text": execution.start(words)}, rows=rows)["text"].guide()
        execution.linear(project.weight.numel(), name="head.text_proj", instances=len(first), rows=rows)
        return normalize(project(first), dim=-1)

    def ask(self, image: TokenStream, execution: Execution, rows: Tensor | None = None) -> tuple[TokenStream, list[Tensor]]:
        """Runs the Q-Former on images without texts.

        Args:
            image: I images.
            execution: Policy, kind of execution, and record.
            rows: As in :meth:`image_features`.

        Returns:
            The queries that have read the images, and what each layer was given of them, [I, queries, D] each.
        """
        queries = self.host.query_tokens.repeat(image.layout.batch_size, 1, 1)
        there = torch.ones(queries.shape[:2], dtype=torch.bool, device=queries.device)
        x = self.host.Qformer.bert.embeddings(query_embeds=queries)
        text = execution.start(TokenStream.start(x, ids=image.layout.ids, special=there))
        streams, states = {"text": text, "image": image}, []
        for step in self.steps["fusion"]:
            states.append(self.queries_of(streams["text"]))
            streams = execution.run([step], streams, rows=rows)
        return streams["text"], states

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


def likeness(images: Tensor, texts: Tensor) -> Tensor:
    """How near images and texts are, each image by its nearest query: [I, queries, E] and [Q, E] -> [I, Q]."""
    return (images @ texts.t()).amax(1)


def _process() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _gather(features: Tensor) -> Tensor:
    """Those of all processes, without gradients."""
    features = features.detach()
    if not dist.is_initialized():
        return features
    everyone = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, features.contiguous())
    return torch.cat(everyone)
