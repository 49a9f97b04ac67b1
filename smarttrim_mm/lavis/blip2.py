"""BLIP-2's Q-Former in LAVIS's registry: matching, features, and LAVIS's own decoding of what was kept of the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchEncoding

from smarttrim_mm.backbones.fusion import linears
from smarttrim_mm.backbones.lavis_blip2 import Blip2Matching, Blip2Qformer
from smarttrim_mm.backbones.lavis_host import import_lavis
from smarttrim_mm.backbones.writing import OnRun, Writing, write
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.lavis.classifier import Scorer
from smarttrim_mm.lavis.model import identities, methods_of
from smarttrim_mm.lavis.ranking import Ranker
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.structures import PackedLayout, TokenStream

Features: Any = import_lavis("lavis.models.blip_models.blip_outputs").BlipOutputFeatures
_MODES = ("image", "text", "multimodal")


@methods_of(Blip2Qformer)
class QFormer(Ranker, Scorer):
    """LAVIS's pre-training, retrieval, features of images and texts, and captions. A text alone runs dense."""

    task_loss = {"type": "ContrastAndMatching"}

    def forward(self, samples: dict[str, Any]) -> Any:
        """A training step of LAVIS's.

        Args:
            samples: ``image``, ``text_input``.

        Returns:
            LAVIS's output with ``loss``, the sum of all losses, and, detached, its parts ``loss_itc``, ``loss_itm`` and
            ``loss_lm``.

        Raises:
            ValueError: If ``text_first`` is set, or there is one pair.
        """
        texts = samples["text_input"]
        if not isinstance(texts, BatchEncoding):
            cut = {"padding": "max_length", "truncation": True, "max_length": self.max_txt_len}
            texts = self.tokenizer(texts, return_tensors="pt", **cut).to(self.device)
        loss, _ = self.learn({**samples, "text_input": texts}, None)
        return self.output_class(loss=loss, **{name: self.last_losses[name] for name in ("loss_itc", "loss_itm", "loss_lm")})

    def compute_sim_matrix(self, data_loader: Any, task_cfg: Any) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~smarttrim_mm.lavis.ranking.Ranker`.

        Raises:
            ValueError: Also if ``text_first`` is set.
        """
        self._check_alone()
        return super().compute_sim_matrix(data_loader, task_cfg)

    @torch.no_grad()
    def extract_features(self, samples: dict[str, Any], mode: str = "multimodal") -> Any:
        """Features, as LAVIS's own method gives them.

        Args:
            samples: ``image``, ``text_input``, as the mode wants.
            mode: ``'image'``, ``'text'`` or ``'multimodal'``.

        Returns:
            LAVIS's ``BlipOutputFeatures``.

        Raises:
            ValueError: If there is no such mode, or what it needs is missing.
        """
        if mode not in _MODES:
            raise ValueError(f"mode is {mode!r}; expected one of {list(_MODES)}")
        missing = [name for name in _needs(mode) if samples.get(name) is None]
        if missing:
            raise ValueError(f"mode is {mode!r}, and the batch has no {' and no '.join(missing)}")
        if mode == "text":
            return self.host_class.extract_features(self, samples, mode=mode)
        if mode == "image":
            execution = self._execution(inputs := self._without_texts(samples["image"], samples))
            queries, _ = self._read(inputs, execution)
            features = self.backbone.image_features(queries, execution)
            self._note(execution.record)
            return Features(image_embeds=queries, image_embeds_proj=features)
        words = self.tokenizer(samples["text_input"], return_tensors="pt", padding=True).to(self.device)  # not cut, as in LAVIS
        inputs = self.inputs_of({**samples, "text_input": words})
        execution = self._execution(inputs)
        queries = self.backbone.queries_of(self.backbone.encode(inputs, execution))
        self._note(execution.record)
        return Features(multimodal_embeds=queries)

    def forward_image(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What the queries made of the images, [I, queries, D], and the images' tokens, zeros where they were dropped.

        A part of a prediction, as :meth:`compute_itm`: ``compute_report()`` leaves both out.
        """
        execution = self._execution(inputs := self._without_texts(image))
        queries, stream = self._read(inputs, execution)
        self.last_record = execution.record
        layout = stream.layout
        tokens = stream.x.new_zeros(*layout.kept_grid().shape, stream.x.shape[-1])
        if isinstance(layout, PackedLayout):
            tokens[layout.instance, layout.source] = stream.x
        else:
            tokens = stream.x * layout.kept_grid()[..., None]
        return queries, tokens

    def compute_itm(self, image_inputs: Tensor, text_ids: Tensor, text_atts: Tensor) -> Tensor:
        """How well images and texts fit, [B].

        Args:
            image_inputs: Tokens of the images from :meth:`forward_image`, [B, P + 1, D]; zeros are left out.
            text_ids: Token ids of the texts, [B, T].
            text_atts: 1 at real tokens, [B, T].
        """
        rows = torch.arange(len(text_ids), device=self.device)
        inputs = VLMInputs(
            images=image_inputs,
            image_index=None,
            image_ids=rows,
            input_ids=text_ids,
            text_mask=text_atts.bool(),
            special_mask=self._special(text_ids),
            sample_ids=rows,
        )
        execution = self._execution(inputs)
        image = TokenStream.start(image_inputs, ids=rows, valid=image_inputs.any(-1))
        streams = {"text": self.backbone.embed_text(inputs, rows, True), "image": image}
        streams = {name: execution.start(stream) for name, stream in streams.items()}
        text = execution.run(self.backbone.steps["fusion"], streams)["text"]
        scores = self.backbone.match(text, execution)[:, 1]
        self.last_record = execution.record
        return scores

    @torch.no_grad()
    def generate(
        self,
        samples: dict[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int = 3,
        max_length: int = 30,
        min_length: int = 10,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
    ) -> list[str]:
        """Captions by LAVIS's decoder, which runs whole on what the image encoder has kept.

        In place of LAVIS's, whose mask is all ones, and which repeats for the beams what transformers repeats too. Beams search
        for each image alone, see :func:`~smarttrim_mm.backbones.writing.write`. As in LAVIS, ``repetition_penalty`` has
        no effect.
        """
        inputs = self._without_texts(samples["image"], samples)
        execution = self._execution(inputs)
        image = self.backbone.read_images(inputs, execution, {})
        states, mask = image.pad()
        written = write(
            self.Qformer,
            torch.full((len(states), 1), self.tokenizer.bos_token_id, device=self.device),
            states,
            mask,
            Writing(
                num_beams=num_beams,
                max_length=max_length,
                min_length=min_length,
                nucleus=use_nucleus_sampling,
                top_p=top_p,
            ),
            end_id=self.tokenizer.sep_token_id,
            pad_id=self.tokenizer.pad_token_id,
            on_run=self._counter(image, execution),
            query_embeds=self.query_tokens.expand(len(states), -1, -1),
        )
        self._note(execution.record)
        captions: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return captions

    def _read(self, inputs: VLMInputs, execution: Execution) -> tuple[Tensor, TokenStream]:
        """The queries that have read images without texts, [I, queries, D], and what was kept of the images."""
        stream = self.backbone.read_images(inputs, execution, {})
        return self.backbone.queries_of(self.backbone.ask(stream, execution)[0]), stream

    def _without_texts(self, image: Tensor, samples: Mapping[str, Any] = {}) -> VLMInputs:
        """A batch of images alone, whose identities are those of the samples or else their places."""
        self._check_alone()
        rows = identities(samples, len(image)).to(self.device)
        nothing = rows.new_zeros(0, 0)
        there = nothing.bool()
        return VLMInputs(image, None, rows, nothing, there, there, sample_ids=rows)

    def _check_alone(self) -> None:
        if self.backbone.text_first:
            raise ValueError(
                "model.trimming.text_first is True, and there are images without texts that could guide their encoder. Set it "
                "to False, or give the texts too (predict, or mode='multimodal')"
            )

    def _execution(self, inputs: VLMInputs) -> Execution:
        return self.trimmed.execution(inputs, self.kind)

    def _counter(self, image: TokenStream, execution: Execution) -> OnRun:
        """Records each run of the decoder, in which the queries run again with every word."""
        backbone = self.backbone
        views = [step.layers["text"] for step in backbone.steps["fusion"]]
        head = sum(linear.weight.numel() for linear in linears(self.Qformer.cls))

        def note(ids: Tensor, index: Tensor, done: Tensor) -> None:
            for name, layers, tokens, per_token in (
                ("decoder.layers", views, backbone.queries + ids.shape[1], 0),
                ("decoder.cls", [], ids.shape[1], head),
            ):
                lengths = torch.full_like(index, tokens)
                execution.decoder(
                    {"image": layers}, image, lengths, index, name=name, per_token=per_token, padded=tokens, done=done
                )

        return note


@methods_of(Blip2Matching)
class QFormerMatcher(QFormer):
    """``forward`` of the model that says whether a text fits an image."""

    task_loss = {"type": "AnswerCrossEntropy"}

    def forward(self, samples: dict[str, Any], match_head: str = "itm") -> Any:
        """Runs the model.

        Args:
            samples: ``image``, ``text_input``; in training ``label`` too: 1 where the text fits.
            match_head: ``'itm'``, or ``'itc'``, where the text runs alone and whole.

        Returns:
            As LAVIS: logits [G, 2], or similarities [G, 1]. In training mode with ``label``, for which LAVIS has no loss: its
            output with ``loss`` and ``logits``.
        """
        if match_head == "itc":
            self._check_alone()
            execution = self._execution(inputs := self.inputs_of(samples))
            queries, _ = self._read(inputs, execution)
            images = self.backbone.image_features(queries, execution)
            texts = self.backbone.text_features(inputs, execution)
            self._note(execution.record)
            return (images @ texts.unsqueeze(-1)).amax(1)
        if self.training and "label" in samples:
            return self._taught(samples)
        return self.trace(samples)


def _needs(mode: str) -> tuple[str, ...]:
    return {"image": ("image",), "text": ("text_input",)}.get(mode, ("image", "text_input"))
