"""Tokenizers: callables from a text to token ids that know their padding and special ids."""

from collections.abc import Sequence
from typing import Protocol

import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor

from smarttrim_mm.registry import TOKENIZERS

_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")  # RoBERTa's ids 0-3


class Tokenizer(Protocol):
    """What a pipeline expects of a tokenizer.

    Attributes:
        pad_id: Id that fills short texts.
        special_ids: Ids of the tokens that begin and end a text; no policy may drop them.
        vocab_size: Number of ids.
    """

    pad_id: int
    special_ids: tuple[int, int]
    vocab_size: int

    def __call__(self, text: str, max_length: int) -> Tensor:
        """Ids of a text with its begin and end tokens, long [T].

        Args:
            text: A non-empty text.
            max_length: Most tokens to return, begin and end tokens included; a longer text loses its last words.

        Raises:
            ValueError: If the text is empty or ``max_length`` leaves no room for a word.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without begin, end and padding tokens, and without ids that are not its own."""
        ...


@TOKENIZERS.register_module()
class WordTokenizer:
    """Whole words and punctuation marks of a given list, lower-cased; other words become ``<unk>``.

    Ids follow RoBERTa's convention: ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, then the words in their order.

    Args:
        words: The vocabulary, each a lower-case word or a run of punctuation.

    Raises:
        ValueError: If there are no words, or one is repeated or is not a single lower-case word.
    """

    def __init__(self, *, words: Sequence[str]) -> None:
        if isinstance(words, str) or not words:
            raise ValueError(f"words={words!r}: expected a list of words, e.g. ['what', 'color', '?']")
        normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.Whitespace()
        vocabulary = {token: index for index, token in enumerate(_SPECIAL_TOKENS)}
        for index, word in enumerate(words):
            pieces = [piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(word))]
            if pieces != [word]:
                raise ValueError(f"words[{index}]={word!r} is read as {pieces}: expected one lower-case word; list its pieces")
            if word in vocabulary:
                raise ValueError(f"words[{index}]={word!r} is in the list already: remove one of the two")
            vocabulary[word] = len(vocabulary)
        self._tokenizer = RustTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        self._tokenizer.normalizer = normalizer
        self._tokenizer.pre_tokenizer = splitter
        self.pad_id = vocabulary["<pad>"]
        self.special_ids = (vocabulary["<s>"], vocabulary["</s>"])
        self.vocab_size = len(vocabulary)

    def __call__(self, text: str, max_length: int) -> Tensor:
        """See `Tokenizer`."""
        _check(text, max_length)
        begin, end = self.special_ids
        return torch.tensor([begin, *self._tokenizer.encode(text).ids[: max_length - 2], end])

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`; words and punctuation marks with spaces between them."""
        left_out = {self.pad_id, *self.special_ids}
        words = (self._tokenizer.id_to_token(each) for each in ids if each not in left_out and each < self.vocab_size)
        return " ".join(words)


@TOKENIZERS.register_module()
class PretrainedTokenizer:
    """A tokenizer of `transformers`, from this machine's files only.

    Args:
        name_or_path: A folder with the tokenizer's files, or a hub name whose files are in the local cache.

    Raises:
        ValueError: If the files are neither in such a folder nor in the cache, or the tokenizer has no begin, end or
            padding token.
    """

    def __init__(self, *, name_or_path: str) -> None:
        from transformers import AutoTokenizer  # takes seconds to import

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name_or_path, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"name_or_path={name_or_path!r} is neither a folder with a tokenizer nor in the local Hugging Face "
                "cache, and nothing is downloaded here. On a machine with a network run `huggingface-cli download NAME "
                "--include '*.json' '*.txt' --local-dir FOLDER`, copy FOLDER to this machine and set name_or_path to "
                "it. For RoBERTa it holds config.json, vocab.json and merges.txt; for BERT, config.json and vocab.txt."
            ) from error
        needed = {name: getattr(self._tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad")}
        missing = [name for name, token_id in needed.items() if token_id is None]
        if missing:
            raise ValueError(
                f"name_or_path={name_or_path!r} has no {', '.join(missing)} token: expected the tokenizer of an "
                "encoder such as roberta-base or bert-base-uncased"
            )
        self.pad_id: int = needed["pad"]
        self.special_ids: tuple[int, int] = (needed["cls"], needed["sep"])
        self.vocab_size = len(self._tokenizer)

    def __call__(self, text: str, max_length: int) -> Tensor:
        """See `Tokenizer`."""
        _check(text, max_length)
        return torch.tensor(self._tokenizer(text, truncation=True, max_length=max_length)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        return self._tokenizer.decode([each for each in ids if each < self.vocab_size], skip_special_tokens=True)


def tokenized_answer(tokenizer: Tokenizer, text: str, max_length: int) -> list[int]:
    """Token ids of an answer; an empty one, which VQAv2's vocabulary has, is its begin and end tokens alone.

    Args:
        tokenizer: The tokenizer.
        text: The answer.
        max_length: Most tokens, begin and end tokens included.
    """
    return tokenizer(text, max_length).tolist() if text.strip() else list(tokenizer.special_ids)


def _check(text: str, max_length: int) -> None:
    if not text.strip():
        raise ValueError(f"text={text!r}: expected a non-empty text; remove the item or fill in its text")
    if max_length < 3:
        raise ValueError(f"max_length={max_length}: expected at least 3, for the begin token, a word and the end token")
