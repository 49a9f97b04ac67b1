import json
import time

import pytest

from smarttrim_mm.datasets.tokenizers import PretrainedTokenizer, WordTokenizer
from smarttrim_mm.registry import TOKENIZERS

WORDS = ["what", "color", "is", "it", "?"]


def test_words_get_robertas_ids():
    tokenizer = TOKENIZERS.build({"type": "WordTokenizer", "words": WORDS})
    assert (tokenizer.pad_id, tokenizer.special_ids, tokenizer.vocab_size) == (1, (0, 2), 9)
    assert tokenizer("What color is it?", max_length=16).tolist() == [0, 4, 5, 6, 7, 8, 2]


def test_unknown_words_become_unk():
    assert WordTokenizer(words=WORDS)("is <s> loud?", max_length=16).tolist() == [0, 6, 3, 3, 3, 3, 8, 2]


def test_long_text_keeps_its_end_token():
    assert WordTokenizer(words=WORDS)("what color is it?", max_length=4).tolist() == [0, 4, 5, 2]


def test_ids_become_words_again():
    """Special tokens go, and so do ids that a larger model may give."""
    tokenizer = WordTokenizer(words=WORDS)
    assert tokenizer.decode([0, 4, 5, 3, 8, 2, 1, 1, 9, 120]) == "what color <unk> ?"
    assert tokenizer.decode([2]) == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"words=\[\]: expected a list of words"),
        ("what", "words='what': expected a list"),
        (["is", "it", "is"], r"words\[2\]='is' is in the list already"),
        (["is", "It"], r"words\[1\]='It' is read as \['it'\]"),
        (["it's"], r"words\[0\]=\"it's\" is read as \['it', \"'\", 's'\]"),
    ],
)
def test_bad_vocabulary(words, message):
    with pytest.raises(ValueError, match=message):
        WordTokenizer(words=words)


def test_bad_calls():
    tokenizer = WordTokenizer(words=WORDS)
    with pytest.raises(ValueError, match="text='  ': expected a non-empty text"):
        tokenizer("  ", max_length=8)
    with pytest.raises(ValueError, match="max_length=2: expected at least 3"):
        tokenizer("what", max_length=2)


def test_pretrained_roberta_from_a_folder(tmp_path):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "i", "s", "is", "Ġ", "Ġis", "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\ni s\nĠ is\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    tokenizer = PretrainedTokenizer(name_or_path=str(tmp_path))
    assert (tokenizer.pad_id, tokenizer.special_ids, tokenizer.vocab_size) == (1, (0, 2), 10)
    assert tokenizer("is is", max_length=8).tolist() == [0, 6, 8, 2]
    assert tokenizer("is is", max_length=3).tolist() == [0, 6, 2]
    with pytest.raises(ValueError, match="text=''"):
        tokenizer("", max_length=8)


def test_pretrained_bert_from_a_folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "it"]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    tokenizer = PretrainedTokenizer(name_or_path=str(tmp_path))
    assert (tokenizer.pad_id, tokenizer.special_ids) == (0, (2, 3))
    assert tokenizer("Is it", max_length=8).tolist() == [2, 5, 6, 3]
    assert tokenizer.decode([2, 6, 5, 1, 6, 3, 0, 0, 30_522]) == "it is it"


def test_pretrained_absent_fails_at_once_and_says_what_to_do():
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=r"name_or_path='no-org/no-model' is neither a folder.*vocab.json and merges.txt"):
        PretrainedTokenizer(name_or_path="no-org/no-model")
    assert time.perf_counter() - begin < 30


def test_pretrained_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=f"name_or_path='{tmp_path}' is neither"):
        PretrainedTokenizer(name_or_path=str(tmp_path))
