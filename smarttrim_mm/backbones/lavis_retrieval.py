"""LAVIS's retrieval models: images and texts are encoded apart, compared (ITC), and the likely pairs matched (ITM).

In training, contrast and hard negatives are LAVIS's (ALBEF, arXiv 2107.07651; BLIP, arXiv 2201.12086): momentum copies and
queues are LAVIS's own, dense, and moved by its own methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softmax

from smarttrim_mm.backbones.lavis import LavisBackbone
from smarttrim_mm.backbones.lavis_host import encoding, linears
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.pairs import Memory, PairLogits, PairTargets, draw_negatives
from smarttrim_mm.structures import TokenStream


@dataclass(frozen=True)
class Encoded:
    """Images or texts that were encoded apart.

    Attributes:
        stream: What the fusion stage reads of them.
        features: What they are compared by, of length 1: the projected first token, float [B, E], or BLIP-2's projected
            queries, [B, queries, E].
    """

    stream: TokenStream
    features: Tensor

    def expand(self, rows: Tensor | None, ids: Tensor) -> Encoded:
        """Those of the pairs.

        Args:
            rows: Which of these each pair uses, long [B]; None: one each, in order.
            ids: Identities of the pairs, long [B].
        """
        if rows is None:
            return replace(self, stream=self.stream.with_ids(ids))
        return Encoded(self.stream.expand(rows, ids), self.features[rows])


class LavisRetriever(LavisBackbone):
    """A LAVIS model that scores image-text pairs for retrieval.

    A pair's score is LAVIS's: the matching head's logit of "fits", plus the similarity of image and text.

    Attributes:
        ramp_up: How much of ``alpha`` the momentum copies have in the contrastive targets, from 0 to 1; moved by
            :class:`~smarttrim_mm.hooks.schedule.RampUpHook`.
    """

    ranks_texts = True
    has_memory = True
    ramp_up = 1.0

    def check_host(self) -> None:
        """Refuses a host that cannot be trimmed.

        Raises:
            ValueError: If no layer of the text encoder reads the image, or ``text_first`` is asked for.
        """
        if self.text_first:
            raise ValueError(
                f"text_first=True with {self.arch}: retrieval scores every image with every text, from one encoding of each "
                "image, which a text's guidance would make that text's alone. Set text_first=False"
            )
        super().check_host()

    @property
    def input_format(self) -> dict[str, int]:
        """See :class:`~smarttrim_mm.backbones.lavis.LavisBackbone`."""
        return {**super().input_format, "num_classes": self.host.itm_head.out_features}

    def forward(self, inputs: VLMInputs, execution: Execution) -> Tensor | PairLogits:
        """Runs the model under the execution's policy.

        Args:
            inputs: The batch. Its targets choose what is returned.
            execution: Policy, kind of execution, and record.

        Returns:
            If the targets are :meth:`prepare`'s: contrast and matching of a training step. Otherwise the scores of each
            sample's pairs, [G, pairs_per_sample]; of samples of one pair, also the matching head's logit of "does not fit",
            which comes first, [G, 2].

        Raises:
            ValueError: If the images have another size than the model's.
        """
        self._check_size(inputs)
        if not self.share_images:
            inputs = inputs.unshared_images()
        images = self.encode_images(inputs, execution)
        texts = self.encode_texts(inputs, execution)
        if isinstance(inputs.targets, PairTargets):
            return self._tell_apart(texts, images, inputs, inputs.targets, execution)
        return _of_samples(self._match(texts, images, inputs, execution), inputs)

    def encode_texts(self, inputs: VLMInputs, execution: Execution) -> Encoded:
        """What every image reads of the texts, and is compared with: Q texts. ``inputs`` may be without images."""
        rows = inputs.text_index
        words = self.words(inputs, inputs.input_ids, execution)
        text = execution.run(self.steps["text"], {"text": self.embed(words)}, rows=rows)["text"]
        features = self._project("text", text.guide(), self.host.text_proj, rows, execution)
        return Encoded(self.to_fuse(text, inputs, execution), features)

    def encode_images(self, inputs: VLMInputs, execution: Execution) -> Encoded:
        """What every text reads of the images, and is compared with: I images. ``inputs`` may be without texts."""
        image = self.read_images(inputs, execution, {})
        features = self._project("image", image.guide(), self.host.vision_proj, inputs.image_index, execution)
        return Encoded(image, features)

    def similarities(self, texts: Encoded, images: Encoded) -> Tensor:
        """Cosines of all images with all texts, [I, Q]: without LAVIS's temperature, as in its test."""
        return images.features @ texts.features.t()

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
        return self._match(texts, images, inputs, execution)[:, 1].view(-1, inputs.pairs_per_sample)

    def prepare(self, inputs: VLMInputs) -> VLMInputs:
        """The batch of a training step: its targets say which image each text is about, by ``image_ids``.

        The first pass over it moves momentum copies and queue, and chooses negatives.

        Raises:
            ValueError: If LAVIS's queue cannot take the batch, there is nothing to tell apart in it, its texts are alternatives
                of a sample, or several processes are to share negatives.
        """
        host = self.host
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        ids = inputs.image_ids if inputs.image_index is None else inputs.image_ids[inputs.image_index]
        check_single_pairs(inputs, self.arch)
        if not host.queue_size or host.queue_size % (len(ids) * world):
            raise ValueError(
                f"queue_size is {host.queue_size}, and a step has {len(ids)} pairs in each of {world} processes: LAVIS's queue "
                "takes whole batches. Set model.backbone.queue_size to a multiple of the step's pairs, or change the batch size"
            )
        if bool((ids == ids[0]).all()):
            raise ValueError(
                f"all {len(ids)} pairs of the batch are about image {int(ids[0])}: there is no negative. Enlarge the batch, "
                "and let the data set give an item one caption"
            )
        if world > 1 and getattr(host, "negative_all_rank", False):
            raise ValueError(
                f"negative_all_rank is True, and there are {world} processes: negatives of other processes, whose tokens would "
                "have to be sent with what was kept of them, are not there. Set model.backbone.negative_all_rank=False"
            )
        if int(host.queue_ptr) % (len(ids) * world):
            host.queue_ptr.zero_()  # batches of another size have filled the queue
        with torch.no_grad():
            host.temp.clamp_(0.001, 0.5)  # as LAVIS does
        return replace(inputs, targets=PairTargets(ids))

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """LAVIS's own modules, as its test runs them on each pair.

        Args:
            inputs: The batch.

        Returns:
            As :meth:`forward` for the scores.
        """
        self._check_size(inputs)
        host, pairs = self.host, inputs.unshared()
        images = host.visual_encoder.forward_features(pairs.images)
        text = encoding(pairs.input_ids, pairs.text_mask)
        alone = host.text_encoder.forward_text(text).last_hidden_state
        compared = [
            normalize(project(states[:, 0]), dim=-1)
            for project, states in ((host.vision_proj, images), (host.text_proj, alone))
        ]
        fits = host.itm_head(self.host_fusion(text, alone, images))
        return _of_samples(_score(fits, *compared), inputs)

    def host_fusion(self, text: Any, alone: Tensor, images: Tensor) -> Tensor:
        """LAVIS's own multi-modal encoder: the texts' first tokens, [B, D].

        Args:
            text: Token ids and mask.
            alone: What the uni-modal encoder made of the texts, [B, T, D].
            images: What the image encoder gave, [B, P + 1, D].
        """
        raise NotImplementedError(f"{type(self).__name__} does not define host_fusion()")

    def words(self, inputs: VLMInputs, input_ids: Tensor, execution: Execution) -> TokenStream:
        """Token ids of the texts as a stream, [Q, T] or packed."""
        stream = TokenStream.start(input_ids, ids=text_ids(inputs), valid=inputs.text_mask, special=inputs.special_mask)
        return execution.start(stream)

    def embed(self, words: TokenStream) -> TokenStream:
        """Embeddings of a stream of token ids."""
        ids, places = words.x, words.layout.positions()
        x = self.host.text_encoder.embeddings(input_ids=ids.view(-1, ids.shape[-1]), position_ids=places.view(1, -1))
        return replace(words, x=x.view(*ids.shape, -1))

    def to_fuse(self, text: TokenStream, inputs: VLMInputs, execution: Execution) -> TokenStream:
        """What is kept of texts for the fusion stage, given what the uni-modal layers made of them."""
        return text

    def begin_fusion(self, text: TokenStream) -> TokenStream:
        """The texts of pairs as the fusion stage takes them, given what was kept."""
        return text

    def hardness(self, texts: Encoded, images: Encoded, contrast: Tensor) -> tuple[Tensor, Tensor]:
        """How much each image is taken for each text, and each text for each image, as logits, [B, B] both."""
        raise NotImplementedError(f"{type(self).__name__} does not define hardness()")

    def _project(self, name: str, first: Tensor, project: nn.Linear, rows: Tensor | None, execution: Execution) -> Tensor:
        execution.linear(project.weight.numel(), name=f"{name}.proj", instances=len(first), rows=rows)
        return normalize(project(first), dim=-1)

    def _match(self, texts: Encoded, images: Encoded, inputs: VLMInputs, execution: Execution) -> Tensor:
        """The matching head's logits, with the similarity in that of "fits", [B, 2]."""
        text = texts.expand(inputs.text_index, inputs.sample_ids)
        image = images.expand(inputs.image_index, inputs.sample_ids)
        fits = self.host.itm_head(self._fused(text, image, execution))
        self._count_head(execution, 1)
        return _score(fits, image.features, text.features)

    def _fused(self, text: Encoded, image: Encoded, execution: Execution, rows: Tensor | None = None) -> Tensor:
        """First tokens of the texts that have read their images, [B, D]."""
        streams = {"text": self.begin_fusion(text.stream), "image": image.stream}
        return execution.run(self.steps["fusion"], streams, rows=rows)["text"].guide()

    def _count_head(self, execution: Execution, times: int) -> None:
        count = sum(linear.weight.numel() for linear in linears(self.host.itm_head))
        execution.linear(times * count, name="head.itm_head")

    def _tell_apart(
        self, texts: Encoded, images: Encoded, inputs: VLMInputs, targets: PairTargets, execution: Execution
    ) -> PairLogits:
        """LAVIS's training step up to its losses. Random numbers are drawn in LAVIS's order."""
        image = images.expand(inputs.image_index, inputs.sample_ids)
        text = texts.expand(None, inputs.sample_ids)
        if targets.memory is None:
            targets = self._remember(inputs, targets)
        memory = targets.memory
        assert memory is not None
        contrast = torch.cat([image.features @ memory.texts, text.features @ memory.images]) / self.host.temp
        true = self._fused(text, image, execution)
        negatives = targets.negatives or draw_negatives(self.hardness(text, image, contrast), targets.image_ids)
        own = torch.arange(len(true), device=true.device)
        twice = inputs.sample_ids.repeat(2)
        false = self._fused(
            text.expand(torch.cat([own, negatives.texts]), twice),
            image.expand(torch.cat([negatives.images, own]), twice),
            execution,
            rows=torch.stack([own, own + len(own)], 1),
        )
        match = self.host.itm_head(torch.cat([true, false]))
        self._count_head(execution, 3)
        return PairLogits(contrast, match, replace(targets, negatives=negatives))

    @torch.no_grad()
    def _remember(self, inputs: VLMInputs, targets: PairTargets) -> PairTargets:
        """Moves LAVIS's momentum copies, and its queue on by the batch; the batch is compared with what was there before."""
        host, rows, ids = self.host, inputs.image_index, targets.image_ids.view(-1, 1)
        same = torch.eq(ids, torch.cat([ids.t(), host.idx_queue], 1)).float()
        right = same / same.sum(1, keepdim=True)
        host._momentum_update()
        image = normalize(host.vision_proj_m(host.visual_encoder_m(inputs.images)[:, 0]), dim=-1)
        image = image if rows is None else image[rows]
        text = host.text_encoder_m.forward_text(encoding(inputs.input_ids, inputs.text_mask)).last_hidden_state
        text = normalize(host.text_proj_m(text[:, 0]), dim=-1)
        images, texts = torch.cat([image.t(), host.image_queue], 1), torch.cat([text.t(), host.text_queue], 1)
        share = host.alpha * self.ramp_up if getattr(host, "use_distill", True) else 0.0
        wanted = [
            share * softmax(one @ others / host.temp, 1) + (1 - share) * right
            for one, others in ((image, texts), (text, images))
        ]
        host._dequeue_and_enqueue(image, text, ids)
        return replace(targets, memory=Memory(images, texts), wanted=torch.cat(wanted))


def text_ids(inputs: VLMInputs) -> Tensor:
    """Stable identity of each text, long [Q]."""
    return inputs.sample_ids if inputs.text_ids is None else inputs.text_ids


def check_single_pairs(inputs: VLMInputs, arch: str) -> None:
    """Refuses a training step on alternatives.

    Raises:
        ValueError: If a sample has several pairs, or pairs share a text.
    """
    if inputs.pairs_per_sample > 1 or inputs.text_index is not None:
        raise ValueError(
            f"a sample of the batch has {inputs.pairs_per_sample} image-text pairs; {arch} is trained with single ones, each "
            "with its own text. Set data_preprocessor.rank_texts=False, and false_captions=0 of the data set"
        )


def _score(fits: Tensor, images: Tensor, texts: Tensor) -> Tensor:
    """The matching head's logits [B, 2] with the similarity of features [B, E] in the second."""
    return torch.stack([fits[:, 0], fits[:, 1] + (images * texts).sum(1)], 1)


def _of_samples(scores: Tensor, inputs: VLMInputs) -> Tensor:
    return scores if inputs.pairs_per_sample == 1 else scores[:, 1].view(-1, inputs.pairs_per_sample)


def small_queue(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a small model for tests, with a queue for batches of 2, 3, 4, 6 and 8."""
    return {**sizes, "queue_size": 24, "embed_dim": 12}
