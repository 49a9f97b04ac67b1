"""Backbones that answer: a decoder that reads what the text encoder made of image and question."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from smarttrim_mm.backbones.fusion import FusionBackbone, linears
from smarttrim_mm.backbones.writing import Writing, write
from smarttrim_mm.datasets.tokenizers import Tokenizer, tokenized_answer
from smarttrim_mm.inputs import TextTargets, VLMInputs
from smarttrim_mm.layers.bert_views import bert_view
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.views import LayerView
from smarttrim_mm.models.predictions import write_scores
from smarttrim_mm.registry import TOKENIZERS
from smarttrim_mm.structures import TokenStream

_LONGEST = 32  # tokens of an answer
_WRITING = Writing(num_beams=3, max_length=10, min_length=1)
_SMOOTHING = 0.1  # of the loss by which BLIP's code ranks answers

# for small configs: of one length, as padding is executed and not counted
SMALL_ANSWERS = [[101, *words, 102] for words in ((7, 3), (8, 9), (7, 5), (11, 3), (8, 12))]

# texts [A, L], their mask, and whose they are [A] -> logits of the next token [A, L, V]
Decode = Callable[[Tensor, Tensor, Tensor], Tensor]


class FusionDecoding(FusionBackbone):
    """A model with a decoder, which is the host's and runs whole. It reads the tokens of a stream that were kept."""

    decodes = ("answers", "text")  # what the decoder gives, for the record, and the stream that it reads
    begins_anew = True  # whether [DEC] takes the place of the texts' begin token
    generation: Writing | None = None  # how it writes; None: it does not
    tokenizer: Tokenizer | None = None

    @property
    def decoder(self) -> Any:
        """The decoder: a BERT language model with ``bert``, ``cls`` and ``config``, and transformers' ``generate``."""
        raise NotImplementedError(f"{type(self).__name__} does not define decoder")

    def host_memory(self, inputs: VLMInputs) -> tuple[Tensor, Tensor]:
        """What the host's own encoders give the decoder to read, [G, M, D], and where it is real, bool [G, M]."""
        raise NotImplementedError(f"{type(self).__name__} does not define host_memory()")

    @cached_property
    def decoder_layers(self) -> list[LayerView]:
        """Views of the decoder's layers, for the count of what they take."""
        return [bert_view(layer, *self.decodes) for layer in self.decoder.bert.encoder.layer]

    def set_generation(self, section: Mapping[str, Any] | None) -> None:
        """Reads how it writes from a config; None: it does not.

        Raises:
            ValueError: If the settings do not fit, or there is no tokenizer.
        """
        if section is None:
            return
        self.generation = Writing.read(section)
        if self.tokenizer is None:
            raise ValueError("generation is set and tokenizer is None: what it writes are texts; give the pipeline's tokenizer")
        positions = self.decoder.config.max_position_embeddings
        if self.generation.max_length > positions:
            raise ValueError(f"generation has max_length={self.generation.max_length}; the decoder has {positions} positions")

    def count_decoder(
        self, execution: Execution, memory: TokenStream, real: Tensor, index: Tensor, done: Tensor | None = None
    ) -> None:
        """Records a run of the decoder.

        Args:
            execution: Has the record.
            memory: What it reads.
            real: True at real tokens of the texts, bool [A, L].
            index: Which instance of the memory each text reads, long [A].
            done: True at texts that were finished before the others, bool [A]; None: none.
        """
        gives, reads = self.decodes
        execution.decoder(
            {reads: self.decoder_layers},
            memory,
            real.sum(1),
            index,
            name=f"decoder.{gives}",
            per_token=sum(linear.weight.numel() for linear in linears(self.decoder.cls)),
            padded=real.shape[1],
            done=done,
        )

    def _begun(self, ids: Tensor) -> Tensor:
        """Texts as the decoder begins them."""
        ids = ids.clone()
        if self.begins_anew:
            ids[:, 0] = self.host.tokenizer.bos_token_id
        return ids

    def _write(self, begun: Tensor, memory: TokenStream, rows: Tensor, execution: Execution, how: Writing) -> Tensor:
        """Lets the decoder continue texts; every run of it is recorded.

        Args:
            begun: What is there of the texts, long [A, t].
            memory: What it reads.
            rows: Which instance of it each text reads, long [A].
            execution: Has the record.
            how: Settings.

        Returns:
            Token ids, what was there included, long [A, L].
        """
        states, mask = memory.pad()

        def count(ids: Tensor, index: Tensor, done: Tensor) -> None:
            self.count_decoder(execution, memory, torch.ones_like(ids, dtype=torch.bool), rows[index], done)

        return write(
            self.decoder,
            begun,
            states[rows],
            mask[rows],
            how,
            end_id=self.input_format["end_id"],
            pad_id=self.input_format["pad_id"],
            on_run=count,
        )

    def _decoder(self, memory: TokenStream, execution: Execution) -> Decode:
        """The decoder on what was kept; every run of it is recorded."""
        states, mask = memory.pad()

        def decode(ids: Tensor, real: Tensor, index: Tensor) -> Tensor:
            self.count_decoder(execution, memory, real, index)
            return self._decode(ids, real, states[index], mask[index])

        return decode

    def _decode(self, ids: Tensor, real: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return self.decoder(
            ids,
            attention_mask=real.long(),
            encoder_hidden_states=states,
            encoder_attention_mask=mask.long(),
            return_dict=True,
        ).logits


class FusionAnswerer(FusionDecoding):
    """A model that ranks a list of answers, and is trained to give the right ones word by word.

    The decoder is the host's, run whole; it reads the question's tokens that the policy has kept, so that dropping some makes
    it cheaper. No gradient goes through what it does not read: a decision learns from the layers of the encoders.

    Args:
        answers: The answers to choose from, as texts for the tokenizer, or as token ids with begin and end tokens; or a JSON
            file with a list of texts.
        tokenizer: Config of a tokenizer (registry ``TOKENIZERS``), if the answers are texts.
        num_candidates: The answers of each question that are compared: those with the likeliest first tokens.
        generation: Settings of :class:`~smarttrim_mm.backbones.writing.Writing`: predictions are then what the decoder writes
            (BLIP's code: ``dict(num_beams=3, max_length=10, min_length=1)``); None: they are scores of the answers.
        **kwargs: Those of the host's adapter.

    Raises:
        FileNotFoundError: If the file of the answers is missing.
        ValueError: If there are no answers, two are alike, the file holds no list of texts, or there is no tokenizer for texts.
    """

    candidate_ids: Tensor
    candidate_mask: Tensor

    def __init__(
        self,
        *,
        answers: str | Sequence[str] | Sequence[Sequence[int]],
        tokenizer: Mapping[str, Any] | None = None,
        num_candidates: int = 128,
        generation: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_candidates < 1:
            raise ValueError(f"num_candidates is {num_candidates}; expected at least 1")
        if isinstance(answers, str):
            answers = _read_answers(answers)
        self.answers = tuple(answers) if answers and isinstance(answers[0], str) else None
        texts = generation is not None or any(isinstance(answer, str) for answer in answers)
        self.tokenizer = TOKENIZERS.build(tokenizer) if texts and tokenizer is not None else None
        self.set_generation(generation)
        with torch.device("cpu"):  # their values are needed on the meta device too
            ids = [torch.tensor(one) for one in _tokenized(answers, self.tokenizer)]
            padded = pad_sequence(ids, batch_first=True, padding_value=self.decoder.config.pad_token_id)
            mask = torch.arange(padded.shape[1]) < torch.tensor([len(one) for one in ids])[:, None]
        self.num_candidates = min(num_candidates, len(ids))
        self.register_buffer("candidate_ids", padded, persistent=False)
        self.register_buffer("candidate_mask", mask, persistent=False)

    @property
    def input_format(self) -> dict[str, int]:
        """See :class:`~smarttrim_mm.backbones.fusion.FusionBackbone`."""
        return {**super().input_format, "num_classes": len(self.candidate_ids)}

    def forward(self, inputs: VLMInputs, execution: Execution) -> Tensor:
        """Runs the model under the execution's policy.

        Args:
            inputs: The batch. Its targets choose what is returned.
            execution: Policy, kind of execution, and record.

        Returns:
            If the targets are texts: logits of their tokens, [K, V]. Otherwise the log-likelihoods of the answers, [G, C],
            minus infinity for those that are no candidates. As in BLIP's code, these are sums over tokens of smoothed ones.

        Raises:
            ValueError: If the samples have another number of images than the model, or the images another size.
        """
        memory = self.encode(inputs, execution)
        return self._answer(inputs, len(inputs.sample_ids), self._decoder(memory, execution))

    def generate(self, inputs: VLMInputs, execution: Execution, how: Writing | None = None) -> Tensor:
        """Writes answers; what beam search gives does not depend on what else is in the batch.

        Args:
            inputs: The batch.
            execution: Policy, kind of execution, and record.
            how: Settings; None: the config's, or else those of BLIP's code.

        Returns:
            Token ids, the one that begins a text included, long [G, L].

        Raises:
            ValueError: As :meth:`forward`.
        """
        memory = self.encode(inputs, execution)
        rows = torch.arange(memory.layout.batch_size, device=memory.x.device)
        begun = self._begun(self.candidate_ids[:1, :1]).expand(len(rows), 1)
        return self._write(begun, memory, rows, execution, how or self.generation or _WRITING)

    def predict(self, inputs: VLMInputs, execution: Execution, data_samples: Sequence[DataSample]) -> None:
        """Fills in ``pred_scores`` of the answers; with ``generation``, ``pred_answers``, a text a question.

        Args:
            inputs: The batch.
            execution: Policy, kind of execution, and record.
            data_samples: One per image.
        """
        if self.generation is None:
            write_scores(self(inputs, execution), data_samples)
            return
        assert self.tokenizer is not None
        written = iter(self.generate(inputs, execution).tolist())
        for sample in data_samples:
            texts = [self.tokenizer.decode(next(written)[1:]) for _ in sample.questions]
            sample.set_field(texts, "pred_answers", dtype=list)

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """The host's own encoders and decoder.

        Args:
            inputs: The batch.

        Returns:
            As :meth:`forward`.
        """
        states, mask = self.host_memory(inputs)
        return self._answer(inputs, len(states), lambda ids, real, index: self._decode(ids, real, states[index], mask[index]))

    def _answer(self, inputs: VLMInputs, samples: int, decode: Decode) -> Tensor:
        targets = inputs.targets
        if isinstance(targets, TextTargets):
            return targets.at_tokens(decode(self._begun(targets.input_ids), targets.mask, targets.sample))
        if self.training and self.num_candidates < len(self.candidate_ids):
            raise ValueError(
                f"targets are no texts, and only {self.num_candidates} of {len(self.candidate_ids)} answers are compared: "
                "expected texts in training; add TokenizeAnswers to the train pipeline and take the loss AnswerGeneration"
            )
        ids, mask = self._begun(self.candidate_ids), self.candidate_mask
        every = torch.arange(samples, device=ids.device)
        start = decode(ids[:1, :1].expand(samples, 1), mask[:1, :1].expand(samples, 1), every)[:, 0]
        first = start.softmax(1)[:, ids[:, 1]]  # [G, C]
        best = first.topk(self.num_candidates, dim=1).indices
        chosen, real = ids[best].flatten(0, 1), mask[best].flatten(0, 1)
        logits = decode(chosen, real, every.repeat_interleave(self.num_candidates))
        labels = chosen.masked_fill(~real, -100)[:, 1:]
        losses = cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none", label_smoothing=_SMOOTHING)
        found = first.new_full(first.shape, -torch.inf)
        return found.scatter(1, best, -losses.sum(1).view(samples, -1).to(found.dtype))


def _read_answers(path: str) -> list[str]:
    """The texts of a JSON list."""
    expected = "expected a JSON list of the answers, such as `python tools/dataset_converters/vqav2_answers.py` writes of VQAv2"
    try:
        answers = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"model.backbone.answers={path!r}: no such file; {expected}") from error
    except ValueError as error:
        raise ValueError(f"model.backbone.answers={path!r} is no JSON ({error}); {expected}") from error
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"model.backbone.answers={path!r} holds {str(answers)[:60]!r}; {expected}")
    return answers


def _tokenized(answers: Sequence[Any], tokenizer: Tokenizer | None) -> list[list[int]]:
    """The token ids of the answers."""
    if not answers:
        raise ValueError("answers is empty; expected the answers to choose from, the classes of the data set in their order")
    texts = [answer for answer in answers if isinstance(answer, str)]
    if texts and tokenizer is None:
        raise ValueError(f"answers holds texts ({texts[0]!r}) and tokenizer is None; give the tokenizer of the pipeline")
    if texts and tokenizer is not None:
        ids = [tokenized_answer(tokenizer, text, _LONGEST) for text in answers]
    else:
        ids = [list(answer) for answer in answers]
    first: dict[tuple[int, ...], int] = {}
    for number, one in enumerate(ids):
        before = first.setdefault(tuple(one), number)
        if before != number:
            raise ValueError(f"answers {before} and {number}, {answers[number]!r}, have the same token ids {one}; give it once")
    return ids
