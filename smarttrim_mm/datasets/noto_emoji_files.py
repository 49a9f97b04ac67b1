"""The files of `NotoEmoji`: Noto's emoji pictures, and the names that Unicode's CLDR gives them in English."""

import argparse
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import normalizers, pre_tokenizers

from smarttrim_mm.datasets.vision_language import VisionLanguageDataset, field
from smarttrim_mm.utils.checkpoint_io import write_atomically

_PICTURES = "png/72"
_NAMES = {
    "annotations": "cldr-annotations-full/annotations/en/annotations.json",
    "annotationsDerived": "cldr-annotations-derived-full/annotationsDerived/en/annotations.json",
}
_LICENCES = {"LICENSE.noto-emoji.txt": "LICENSE", "README.noto-emoji.md": "README.md"}
_CLDR_LICENCE = "cldr-annotations-full/LICENSE"
_PREFIX = "emoji_u"
_VARIATION_SELECTOR = 0xFE0F  # asks for a coloured picture; CLDR's keys have it here and there, names of pictures have not
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class _Sources(VisionLanguageDataset):
    """For its readers of files."""

    METAINFO = {"dataset_name": "Noto emoji"}
    LAYOUT = "a checkout of googlefonts/noto-emoji, and the folder cldr-json/ of one of unicode-org/cldr-json"
    REMEDY = "Correct the arguments; docs/data.md tells where each file comes from"


def codepoints(text: str) -> str:
    """How Noto writes an emoji in the name of its picture: hexadecimal code points, joined by ``_``, without U+FE0F.

    Args:
        text: The emoji's characters.
    """
    return "_".join(f"{ord(character):04x}" for character in text if ord(character) != _VARIATION_SELECTOR)


def read_names(root: Path) -> dict[str, dict[str, Any]]:
    """CLDR's English names.

    Args:
        root: Folder with ``cldr-annotations-full/`` and ``cldr-annotations-derived-full/``.

    Returns:
        By `codepoints`, ``name`` (what is read aloud, CLDR's ``tts``) and ``keywords``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If its content is not as published, or one emoji has two names.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, relative in _NAMES.items():
        path = root / relative
        expected = f"expected an object {key!r} with an object 'annotations', as in the official file; fetch it again"
        content = _Sources.read_json(path, expected)
        for text, row in field(field(content, key, dict, str(path)), "annotations", dict, str(path)).items():
            where = f"{path}, {text!r}"
            names = field(row, "tts", list, where)
            if len(names) != 1 or not isinstance(names[0], str) or not names[0].strip():
                raise ValueError(f"{where} has tts={names!r}: expected one name; fetch the file again")
            record = {"name": names[0], "keywords": list(row.get("default", []))}
            if found.setdefault(codepoints(text), record) != record:
                raise ValueError(
                    f"{where} is named {names[0]!r}, and {found[codepoints(text)]['name']!r} before: fetch both again"
                )
    return found


def vocabulary(names: Iterable[str]) -> list[str]:
    """The words and punctuation marks of names as BERT's tokenizer splits them, in lower case: special tokens, then sorted."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for name in names for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(name))}
    return [*_SPECIAL_TOKENS, *sorted(words)]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes pictures, names and vocabulary.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Raises:
        FileNotFoundError: If a source is missing.
        ValueError: If its content is not as published, or there is another number of pictures with names than expected.
    """
    parser = argparse.ArgumentParser(
        "noto_emoji.py",
        description="Write the folder that NotoEmoji reads: every 72 px picture of Noto's emoji that has an English name in "
        "Unicode's CLDR, the names and keywords, a tokenizer of the names' words, and both licences. docs/data.md tells which "
        "versions have 3,530.",
    )
    parser.add_argument("noto_emoji", help=f"checkout of googlefonts/noto-emoji, with {_PICTURES}/")
    parser.add_argument(
        "cldr_json", help="folder cldr-json/ of unicode-org/cldr-json, with cldr-annotations-full/ and -derived-full/"
    )
    parser.add_argument("--out", default="data/noto_emoji", metavar="DIR", help="folder to write (default: data/noto_emoji)")
    parser.add_argument(
        "--num-pictures", type=int, default=3530, metavar="N", help="pictures to expect (default: 3530); 0: any"
    )
    args = parser.parse_args(argv)
    noto, cldr, out = Path(args.noto_emoji), Path(args.cldr_json), Path(args.out)
    names = read_names(cldr)
    copies = {out / name: noto / source for name, source in _LICENCES.items()}
    copies[out / "LICENSE.cldr_unicode.txt"] = cldr / _CLDR_LICENCE
    pictures = sorted((noto / _PICTURES).glob(f"{_PREFIX}*.png"))
    rows = []
    for path in pictures:
        points = path.stem.removeprefix(_PREFIX)
        if points in names:
            rows.append({"image": path.name, "codepoints": points, **names[points]})
            copies[out / "images" / path.name] = path
    missing = [source for source in copies.values() if not source.is_file()]
    if missing or not pictures:
        missing = missing or [noto / _PICTURES / f"{_PREFIX}*.png"]
        raise FileNotFoundError(f"no file {missing[0]}; expected {_Sources.LAYOUT}. {_Sources.REMEDY}")
    if args.num_pictures not in (0, len(rows)):
        raise ValueError(
            f"{len(rows)} of {len(pictures)} pictures have a name, expected {args.num_pictures}: take the versions that "
            f"docs/data.md names, or give --num-pictures {len(rows)} if other ones are wanted; nothing was written"
        )
    for folder in ("images", "tokenizer"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for copy, source in copies.items():
        shutil.copyfile(source, copy)
    words = vocabulary(row["name"] for row in rows)
    (out / "tokenizer/config.json").write_text('{"model_type": "bert"}\n')
    write_atomically(out / "tokenizer/vocab.txt", "".join(f"{word}\n" for word in words).encode())
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(out / "annotations.jsonl", "".join(lines).encode())
    print(f"{len(rows)} of {len(pictures)} pictures and {len(words)} tokens written to {out}")
