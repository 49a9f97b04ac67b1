"""Backbones for retrieval: images and texts are encoded apart, compared (ITC), and the likely pairs matched (ITM).

In training, contrast and hard negatives are those of ALBEF (arXiv 2107.07651) and BLIP (arXiv 2201.12086): momentum copies and
queues are the host's own, dense, and moved by its own methods.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softmax

from smarttrim_mm.backbones.fusion import FusionBackbone, linears
from smarttrim_mm.backbones.given_tokens import encoding
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


class FusionRetriever(FusionBackbone):
    """A model that scores image-text pairs for retrieval.

    A pair's score is the host's: the matching head's logit of "fits", plus the similarity of image and text.

    Attributes:
        ramp_up: How much of ``alpha`` the momentum copies have in the contrastive targets, from 0 to 1; moved by
            :class:`~smarttrim_mm.hooks.schedule.RampUpHook`.
    """

    settings = queue_settings = "model.backbone."  # where a config sets options of the host, and the queue
    ranks_texts = True
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
        """See :class:`~smarttrim_mm.backbones.fusion.FusionBackbone`."""
        return {**super().input_format, "num_classes": 2}

    @property
    def image_proj(self) -> nn.Linear:
        """Maps an image's class token to what is compared."""
        raise NotImplementedError(f"{type(self).__name__} does not define image_proj")

    @property
    def text_proj(self) -> nn.Linear:
        """Maps a text's first token to what is compared."""
        raise NotImplementedError(f"{type(self).__name__} does not define text_proj")

    @property
    def match_head(self) -> nn.Module:
        """What tells whether a pair fits, for its count."""
        raise NotImplementedError(f"{type(self).__name__} does not define match_head")

    @property
    def queue(self) -> Any:
        """What has ``queue_size``, ``queue_ptr``, ``image_queue``, ``text_queue``, ``idx_queue`` and ``alpha``."""
        raise NotImplementedError(f"{type(self).__name__} does not define queue")

    def match(self, first: Tensor) -> Tensor:
        """That a text does not fit its image, and that it does, of its first token: [B, D] -> [B, 2]."""
        fits: Tensor = self.match_head(first)
        return fits

    def momentum(self, images: Tensor, text: Any) -> tuple[Tensor, Tensor]:
        """What the momentum copies make of images and of tokenised texts, to be compared: [I, E] and [Q, E]."""
        raise NotImplementedError(f"{type(self).__name__} does not define momentum()")

    def bound_temperature(self) -> None:
        """Keeps the temperature within the host's bounds, if it has some."""

    def host_fusion(self, text: Any, alone: Tensor, images: Tensor) -> Tensor:
        """The host's own multi-modal encoder: the texts' first tokens, [B, D].

        Args:
            text: Token ids and mask.
            alone: What the uni-modal encoder made of the texts, [B, T, D].
            images: What the image encoder gave, [B, P + 1, D].
        """
        raise NotImplementedError(f"{type(self).__name__} does not define host_fusion()")

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """The host's own modules, as its test runs them on each pair.

        Args:
            inputs: The batch.

        Returns:
            As :meth:`forward` for the scores.
        """
        self.check_size(inputs)
        pairs = inputs.unshared()
        images = self.host_images(pairs.images)
        text = encoding(pairs.input_ids, pairs.text_mask)
        alone = self.text_encoder.forward_text(text).last_hidden_state
        compared = [
            normalize(project(states[:, 0]), dim=-1) for project, states in ((self.image_proj, images), (self.text_proj, alone))
        ]
        fits = self.match(self.host_fusion(text, alone, images))
        return _of_samples(_score(fits, *compared), inputs)

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
        self.check_size(inputs)
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
        features = self._project("text", text.guide(), self.text_proj, rows, execution)
        return Encoded(self.to_fuse(text, inputs, execution), features)

    def encode_images(self, inputs: VLMInputs, execution: Execution) -> Encoded:
        """What every text reads of the images, and is compared with: I images. ``inputs`` may be without texts."""
        image = self.read_images(inputs, execution, {})
        features = self._project("image", image.guide(), self.image_proj, inputs.image_index, execution)
        return Encoded(image, features)

    def similarities(self, texts: Encoded, images: Encoded) -> Tensor:
        """Cosines of all images with all texts, [I, Q]: without the temperature, as in hosts' tests."""
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
            ValueError: If the queue cannot take the batch, there is nothing to tell apart in it, its texts are alternatives
                of a sample, or several processes are to share negatives.
        """
        queue = self.queue
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        ids = inputs.image_ids if inputs.image_index is None else inputs.image_ids[inputs.image_index]
        check_single_pairs(inputs, self.arch)
        if not queue.queue_size or queue.queue_size % (len(ids) * world):
            raise ValueError(
                f"queue_size is {queue.queue_size}, and a step has {len(ids)} pairs in each of {world} processes: the "
                f"queue takes whole batches. Set {self.queue_settings}queue_size to a multiple of the step's pairs, or change "
                "the batch size"
            )
        if bool((ids == ids[0]).all()):
            raise ValueError(
                f"all {len(ids)} pairs of the batch are about image {int(ids[0])}: there is no negative. Enlarge the batch, "
                "and let the data set give an item one caption"
            )
        if world > 1 and getattr(self.host, "negative_all_rank", False):
            raise ValueError(
                f"negative_all_rank is True, and there are {world} processes: negatives of other processes, whose tokens would "
                f"have to be sent with what was kept of them, are not there. Set {self.settings}negative_all_rank=False"
            )
        if int(queue.queue_ptr) % (len(ids) * world):
            queue.queue_ptr.zero_()  # batches of another size have filled the queue
        self.bound_temperature()
        return replace(inputs, targets=PairTargets(ids))

    def words(self, inputs: VLMInputs, input_ids: Tensor, execution: Execution) -> TokenStream:
        """Token ids of the texts as a stream, [Q, T] or packed."""
        stream = TokenStream.start(input_ids, ids=text_ids(inputs), valid=inputs.text_mask, special=inputs.special_mask)
        return execution.start(stream)

    def embed(self, words: TokenStream) -> TokenStream:
        """Embeddings of a stream of token ids."""
        ids, places = words.x, words.layout.positions()
        rows = -1, ids.shape[-1]  # packed, one; else positions are of one row for all, or of each
        x = self.text_encoder.embeddings(input_ids=ids.view(rows), position_ids=places.view(rows))
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
        fits = self.match(self._fused(text, image, execution))
        self._count_head(execution, 1)
        return _score(fits, image.features, text.features)

    def _fused(self, text: Encoded, image: Encoded, execution: Execution, rows: Tensor | None = None) -> Tensor:
        """First tokens of the texts that have read their images, [B, D]."""
        streams = {"text": self.begin_fusion(text.stream), "image": image.stream}
        return execution.run(self.steps["fusion"], streams, rows=rows)["text"].guide()

    def _count_head(self, execution: Execution, times: int) -> None:
        count = sum(linear.weight.numel() for linear in linears(self.match_head))
        execution.linear(times * count, name="head.itm_head")

    def _tell_apart(
        self, texts: Encoded, images: Encoded, inputs: VLMInputs, targets: PairTargets, execution: Execution
    ) -> PairLogits:
        """The host's training step up to its losses. Random numbers are drawn in its order."""
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
        match = self.match(torch.cat([true, false]))
        self._count_head(execution, 3)
        return PairLogits(contrast, match, replace(targets, negatives=negatives))

    @torch.no_grad()
    def _remember(self, inputs: VLMInputs, targets: PairTargets) -> PairTargets:
        """Moves momentum copies, and the queue on by the batch; the batch is compared with what was there before."""
        queue, rows, ids = self.queue, inputs.image_index, targets.image_ids.view(-1, 1)
        same = torch.eq(ids, torch.cat([ids.t(), queue.idx_queue], 1)).float()
        right = same / same.sum(1, keepdim=True)
        self.host._momentum_update()
        image, text = self.momentum(inputs.images, encoding(inputs.input_ids, inputs.text_mask))
        image, text = normalize(image, dim=-1), normalize(text, dim=-1)
        image = image if rows is None else image[rows]
        images, texts = torch.cat([image.t(), queue.image_queue], 1), torch.cat([text.t(), queue.text_queue], 1)
        share = queue.alpha * self.ramp_up if getattr(queue, "use_distill", True) else 0.0
        wanted = [
            share * softmax(one @ others / self.host.temp, 1) + (1 - share) * right
            for one, others in ((image, texts), (text, images))
        ]
        queue._dequeue_and_enqueue(image, text, ids)
        return replace(targets, memory=Memory(images, texts), wanted=torch.cat(wanted))


class TwiceReadRetriever(FusionRetriever):
    """BLIP's way: a text runs through the text encoder uni-modally to be compared, and again, from [ENC] on, with images."""

    anew = frozenset({"text"})

    def uni_modal(self) -> list[Any]:
        return list(self.text_encoder.encoder.layer)

    def to_fuse(self, text: TokenStream, inputs: VLMInputs, execution: Execution) -> TokenStream:
        ids = inputs.input_ids.clone()
        ids[:, 0] = self.enc_token_id
        return self.words(inputs, ids, execution)

    def begin_fusion(self, text: TokenStream) -> TokenStream:
        return self.embed(text)

    def hardness(self, texts: Encoded, images: Encoded, contrast: Tensor) -> tuple[Tensor, Tensor]:
        similar = self.similarities(texts, images) / self.host.temp
        return similar.t(), similar

    def host_fusion(self, text: Any, alone: Tensor, images: Tensor) -> Tensor:
        ids = text.input_ids.clone()
        ids[:, 0] = self.enc_token_id
        mask = torch.ones(images.shape[:2], dtype=torch.long, device=images.device)
        states = self.text_encoder(
            ids,
            attention_mask=text.attention_mask,
            encoder_hidden_states=images,
            encoder_attention_mask=mask,
            return_dict=True,
        )
        first: Tensor = states.last_hidden_state[:, 0]
        return first


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
