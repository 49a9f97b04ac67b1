"""Texts that reach a host model as token ids."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import BatchEncoding

from smarttrim_mm.datasets.tokenizers import Tokenizer

_LONGEST = 32  # tokens of a prompt
_UNUSED, _UNUSED_BEFORE = 994, 99  # of bert-base-uncased: how many, and of these before [UNK], [CLS], [SEP] and [MASK]


def encoding(input_ids: Tensor, mask: Tensor) -> BatchEncoding:
    """Texts as transformers' tokenizers give them.

    Args:
        input_ids: [A, L].
        mask: True at real tokens, bool [A, L].
    """
    return BatchEncoding({"input_ids": input_ids, "attention_mask": mask.long()})


class GivenTokens:
    """Stands in a host model for its tokenizer, which would be downloaded: texts come as the token ids of a data set.

    Args:
        vocab_size: Number of ids. BLIP's tokenizer adds [DEC], which begins what a decoder gives, and then [ENC].
        pad_token_id: Id of the padding.
        encodes: Whether there is an [ENC]; BLIP-2's tokenizer adds none.
    """

    def __init__(self, vocab_size: int, pad_token_id: int, encodes: bool = True) -> None:
        self.vocab_size, self.pad_token_id = vocab_size, pad_token_id
        self.bos_token_id = vocab_size - 1 - encodes
        if encodes:
            self.enc_token_id = vocab_size - 1

    def __len__(self) -> int:
        return self.vocab_size

    def __call__(self, text: BatchEncoding, **_: Any) -> BatchEncoding:
        """A copy, as models write into what they get."""
        return BatchEncoding({name: value.clone() for name, value in text.items()})


class PromptTokens(GivenTokens):
    """Knows one text besides: constructors of captioners count the prompt's tokens.

    Args:
        vocab_size: As in :class:`GivenTokens`, like the next.
        pad_token_id: Likewise.
        prompt: A text or its token ids, begin and end tokens included.
        tokenizer: Of the pipeline, if the prompt is a text.

    Raises:
        ValueError: If it is missing then.
    """

    def __init__(self, vocab_size: int, pad_token_id: int, prompt: str | Sequence[int], tokenizer: Tokenizer | None) -> None:
        super().__init__(vocab_size, pad_token_id)
        if isinstance(prompt, str) and tokenizer is None:
            raise ValueError(
                f"prompt is {prompt!r} and tokenizer is None; give the tokenizer of the pipeline, or the prompt's token ids "
                "with begin and end tokens"
            )
        self.prompt = tokenizer(prompt, _LONGEST).tolist() if isinstance(prompt, str) and tokenizer else list(prompt)

    def __call__(self, text: BatchEncoding | str | Sequence[int], **kwargs: Any) -> BatchEncoding:
        if isinstance(text, BatchEncoding):
            return super().__call__(text, **kwargs)
        return BatchEncoding({"input_ids": list(self.prompt)})


class CoordinateTokens(GivenTokens):
    """Knows the ids of tokens that bert-base-uncased's vocabulary leaves unused: detectors write coordinates by them."""

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        """Ids of tokens ``[unused0]`` to ``[unused993]``.

        Raises:
            ValueError: If a token is another one, or the vocabulary ends before it.
        """
        return [self._id(token) for token in tokens]

    def _id(self, token: str) -> int:
        found = re.fullmatch(r"\[unused(\d+)\]", token)
        number = int(found[1]) if found else _UNUSED
        if number >= _UNUSED:
            raise ValueError(
                f"{token!r} is no token that BERT's vocabulary leaves unused; expected [unused0] to [unused{_UNUSED - 1}]"
            )
        place = number + (1 if number < _UNUSED_BEFORE else 5)  # [PAD] is before them, and four more amid them
        if place >= self.bos_token_id:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, and {token} is number {place} of BERT's vocabulary; expected the whole "
                "vocabulary with [DEC] and [ENC], 30524"
            )
        return place
