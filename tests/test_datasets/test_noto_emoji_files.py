import json
from pathlib import Path

import pytest
from official_files import EMOJI, write_emoji_sources

from smarttrim_mm.datasets.noto_emoji_files import codepoints, main, vocabulary
from smarttrim_mm.datasets.tokenizers import PretrainedTokenizer

CLDR = "cldr-annotations-full/annotations/en/annotations.json"


@pytest.fixture
def sources(tmp_path) -> tuple[Path, Path]:
    return write_emoji_sources(tmp_path)


def convert(sources: tuple[Path, Path], out: Path, number: int = 7) -> None:
    main([*map(str, sources), "--out", str(out), "--num-pictures", str(number)])


def test_codepoints_are_those_of_notos_file_names():
    assert codepoints("#\ufe0f\u20e3") == "0023_20e3"
    assert codepoints("\U0001f3f3\ufe0f\u200d\U0001f308") == "1f3f3_200d_1f308"


def test_pictures_with_a_name_are_written(sources, tmp_path, capsys):
    out = tmp_path / "data/noto_emoji"
    convert(sources, out)
    rows = [json.loads(line) for line in (out / "annotations.jsonl").read_text().splitlines()]
    assert [row["codepoints"] for row in rows] == [
        "0023_20e3", "1f17e", "1f44b", "1f44b_1f3fb", "1f44b_1f3ff", "231a", "3297",
    ]  # fmt: skip
    assert rows[3] == {
        "image": "emoji_u1f44b_1f3fb.png",
        "codepoints": "1f44b_1f3fb",
        "name": "waving hand: light skin tone",
        "keywords": ["bye", "light skin tone"],
    }
    assert rows[1]["keywords"] == [] and rows[6]["name"] == "Japanese “congratulations” button"
    assert "“congratulations”" in (out / "annotations.jsonl").read_text()
    assert sorted(path.name for path in (out / "images").iterdir()) == [row["image"] for row in rows]
    picture = "emoji_u231a.png"
    assert (out / "images" / picture).read_bytes() == (sources[0] / "png/72" / picture).read_bytes()
    licences = {
        name: (out / name).read_text()
        for name in ("LICENSE.noto-emoji.txt", "LICENSE.cldr_unicode.txt", "README.noto-emoji.md")
    }
    assert [*licences.values()] == [
        "LICENSE of noto-emoji\n",
        "LICENSE of cldr-annotations-full\n",
        "README.md of noto-emoji\n",
    ]
    assert "7 of 8 pictures and 25 tokens written to" in capsys.readouterr().out


def test_the_tokenizer_knows_every_word(sources, tmp_path):
    convert(sources, tmp_path)
    tokenizer = PretrainedTokenizer(name_or_path=str(tmp_path / "tokenizer"))
    names = [name for name, _ in EMOJI.values()][:-1]
    assert (tokenizer.pad_id, tokenizer.special_ids, tokenizer.vocab_size) == (0, (2, 3), len(vocabulary(names)))
    ids = [tokenizer(name, 24).tolist() for name in names]
    assert all(1 not in each for each in ids)  # [UNK]
    assert tokenizer.decode(ids[4]) == "waving hand : dark skin tone"
    assert tokenizer("dog", 24).tolist() == [2, 1, 3]  # a name without a picture


def test_vocabulary_is_in_lower_case():
    assert vocabulary(["O button", "o (Big) o"]) == [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "(",
        ")",
        "big",
        "button",
        "o",
    ]


def test_another_number_is_not_written(sources, tmp_path):
    with pytest.raises(
        ValueError, match=r"7 of 8 pictures have a name, expected 3530: .*--num-pictures 7 .*nothing was written"
    ):
        main([*map(str, sources), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    convert(sources, tmp_path / "out", number=0)
    assert (tmp_path / "out/annotations.jsonl").is_file()


@pytest.mark.parametrize("name", ["LICENSE", "png/72", CLDR])
def test_missing_sources_are_named(sources, tmp_path, name):
    root = sources[name == CLDR]
    (root / name).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"no file {root / name}.*expected a checkout of googlefonts/noto-emoji"):
        convert(sources, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": {"annotations": {"\u231a": {"default": ["time"]}}}}, r"'\u231a' has tts=None"),
        ({"annotations": {"annotations": {"\u231a": {"tts": ["a", "b"]}}}}, r"has tts=\['a', 'b'\]: expected one name"),
        ({"annotations": {"annotations": {"\u231a": {"tts": [" "]}}}}, r"has tts=\[' '\]: expected one name"),
        (
            {"annotations": {"annotations": {"\u231a": {"tts": ["watch"]}, "\u231a\ufe0f": {"tts": ["clock"]}}}},
            r"is named 'clock', and 'watch' before",
        ),
        ({"annotationsDerived": {}}, r"annotations.json has annotations=None .*expected 'annotations' of type dict"),
    ],
)
def test_other_content_is_refused(sources, tmp_path, changes, message):
    (sources[1] / CLDR).write_text(json.dumps(changes))
    with pytest.raises(ValueError, match=message):
        convert(sources, tmp_path / "out")
