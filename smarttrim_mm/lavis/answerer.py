"""LAVIS's models that answer in words: its own decoding of what was kept of the questions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from smarttrim_mm.backbones.given_tokens import encoding
from smarttrim_mm.backbones.lavis import LavisAnswerer
from smarttrim_mm.backbones.writing import NUCLEUS_PENALTY, Writing, write
from smarttrim_mm.inputs import TextTargets
from smarttrim_mm.lavis.model import TrimmedModel, methods_of
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.structures import TokenStream


@methods_of(LavisAnswerer)
class Answerer(TrimmedModel):
    """``forward`` and ``predict_answers`` of a model with a decoder."""

    task_loss = {"type": "AnswerGeneration"}
    _read: tuple[Execution, TokenStream] | None = None  # by the decoder, while answers are ranked
    _drawn: Mapping[str, Any] = {}  # how answers are written

    def forward(self, samples: dict[str, Any]) -> Any:
        """The loss of a batch.

        Args:
            samples: As LAVIS's data sets collate it: ``image``, ``text_input``, ``answer``, ``weight``, ``n_answers``.

        Returns:
            LAVIS's output with ``loss``.
        """
        answers = self.tokenizer(samples["answer"], padding="longest", return_tensors="pt").to(self.device)
        counts = torch.as_tensor(samples["n_answers"], device=self.device)
        targets = TextTargets(
            answers.input_ids,
            answers.attention_mask.bool(),
            torch.as_tensor(samples["weight"], device=self.device),
            torch.arange(len(counts), device=self.device).repeat_interleave(counts),
            len(counts),
        )
        return self.output_class(loss=self.learn(samples, targets)[0])

    def forward_encoder(self, samples: dict[str, Any]) -> tuple[Any, ...]:
        """The questions that have read their images, as LAVIS's decoding takes them.

        Args:
            samples: ``image``, ``text_input``. Its ``tokenized_text`` becomes what was kept of the questions, with the mask.

        Returns:
            As many values as LAVIS's own method has: an output with ``last_hidden_state`` [G, longest kept, D], and None.
        """
        inputs = self.inputs_of(samples)
        execution = self.trimmed.execution(inputs, self.kind)
        memory = self.backbone.encode(inputs, execution).pack()
        self._read, self.last_record = (execution, memory), execution.record
        states, mask = memory.pad()
        kept = memory.layout.from_grid(inputs.input_ids)
        ids = replace(memory, x=kept[:, None]).pad()[0].squeeze(2)
        samples["tokenized_text"] = encoding(ids, mask)
        output = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=states)
        return (output, *[None] * (self.backbone.encoder_outputs - 1))

    def predict_answers(
        self,
        samples: dict[str, Any],
        *args: Any,
        use_nucleus_sampling: bool = False,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        **kwargs: Any,
    ) -> list[str]:
        """LAVIS's own, which ranks answers or lets the decoder write them; this one can also draw their words.

        Args:
            samples: ``image``, ``text_input``.
            *args: LAVIS's, such as the list of answers.
            use_nucleus_sampling: With ``inference_method='generate'``: words are drawn, as by LAVIS's captioner.
            top_p: Probability of the words that are drawn from.
            repetition_penalty: Of answers that are written without drawing; LAVIS's own has none.
            **kwargs: LAVIS's.

        Raises:
            ValueError: If words are to be drawn and answers ranked.
        """
        if use_nucleus_sampling and kwargs.get("inference_method") != "generate":
            raise ValueError("use_nucleus_sampling is set; expected inference_method='generate' with it: ranks are not drawn")
        penalty = NUCLEUS_PENALTY if use_nucleus_sampling else repetition_penalty
        self._drawn = {"nucleus": use_nucleus_sampling, "top_p": top_p, "repetition_penalty": penalty}
        count = self.text_decoder.register_forward_pre_hook(self._count, with_kwargs=True)
        try:
            answers: list[str] = super().predict_answers(samples, *args, **kwargs)
        finally:
            count.remove()
            self._read = None
        assert self.last_record is not None
        self._note(self.last_record)
        return answers

    def _generate_answers(
        self, samples: dict[str, Any], num_beams: int = 3, max_length: int = 10, min_length: int = 1
    ) -> list[str]:
        """In place of LAVIS's, whose mask is all ones, and which repeats for the beams what transformers repeats too."""
        states = self.forward_encoder(samples)[0].last_hidden_state
        assert self._read is not None
        (execution, memory), self._read = self._read, None  # what is written is counted here

        def count(ids: Tensor, index: Tensor, done: Tensor) -> None:
            self.backbone.count_decoder(execution, memory, torch.ones_like(ids, dtype=torch.bool), index, done)

        written = write(
            self.text_decoder,
            torch.full((len(states), 1), self.tokenizer.bos_token_id, device=self.device),
            states,
            samples["tokenized_text"].attention_mask.bool(),
            Writing(num_beams=num_beams, max_length=max_length, min_length=min_length, **self._drawn),
            end_id=self.tokenizer.sep_token_id,
            pad_id=self.tokenizer.pad_token_id,
            on_run=count,
        )
        answers: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return answers

    def _count(self, _: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> None:
        """Records a run of the decoder that ranks: the candidates of a question follow each other."""
        if self._read is None:
            return
        execution, memory = self._read
        ids = args[0] if args else kwargs["input_ids"]
        mask = kwargs.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        questions = torch.arange(memory.layout.batch_size, device=ids.device)
        self.backbone.count_decoder(execution, memory, real, questions.repeat_interleave(len(ids) // len(questions)))
