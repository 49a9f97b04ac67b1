"""Emoji pictures with their names, for retrieval that a CPU trains in minutes."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from smarttrim_mm.datasets.vision_language import VisionLanguageDataset, check_split, check_text, field, parse_object
from smarttrim_mm.registry import DATASETS

_SPLITS = ("train", "val", "test")
_TEST, _VAL, _ALL = 400, 200, 3_530


@DATASETS.register_module()
class NotoEmoji(VisionLanguageDataset):
    """Noto's emoji pictures (72 px, transparent) with the names that Unicode's CLDR gives them in English, for retrieval.

    A record has ``img_path``, ``image_id`` (the picture's row in the file), ``questions`` (its one name) and ``question_ids``
    (the row again); in training also ``targets``, [0]. No two pictures have the same name, which is checked.

    The split: pictures in the order of the SHA-256 of their code points (ASCII, as in the file), so that neither the file's
    order nor a generator matters; the first ``num_test_images`` are ``test``, the next ``num_val_images`` are ``val``, for
    choosing, and the others ``train``.

    Variants of an emoji are not kept together: 1,880 of the 3,530 pictures are of one of five skin tones, and differ from their
    siblings in the tone and a few words of the name. Of the 400 test pictures 212 have a skin tone, 259 a sibling in ``train``
    that differs in the tone alone, and 104 a word in the name that no name in ``train`` has. So recall says how well known
    parts (person, activity, tone ...) are recognised in new combinations; what was never named, only exclusion can find. Two
    test pictures are pixel for pixel the same (two tones of the snowboarder): no model tells them apart.

    Args:
        split: 'train', 'val' or 'test'.
        data_root: Folder with ``annotations.jsonl`` and ``images/``; ``tools/dataset_converters/noto_emoji.py`` writes it.
        num_test_images: Pictures of ``test``.
        num_val_images: Pictures of ``val``.
        **kwargs: Further arguments of `VisionLanguageDataset`.

    Raises:
        FileNotFoundError: If a file or a picture is missing.
        ValueError: If the file's content is not as written, a name is empty or comes twice, or none is left to train on.
    """

    METAINFO = {"dataset_name": "Noto emoji"}
    LAYOUT = "annotations.jsonl and images/, which tools/dataset_converters/noto_emoji.py writes"

    def __init__(
        self,
        *,
        split: str,
        data_root: str = "data/noto_emoji",
        num_test_images: int = _TEST,
        num_val_images: int = _VAL,
        **kwargs: Any,
    ) -> None:
        self.split = check_split(split, _SPLITS)
        self.num_test_images = num_test_images
        self.num_val_images = num_val_images
        super().__init__(data_root=data_root, test_mode=kwargs.pop("test_mode", split != "train"), **kwargs)

    def published_counts(self) -> dict[str, int]:
        """The number of pictures of the versions that docs/data.md names."""
        counts = {"test": self.num_test_images, "val": self.num_val_images}
        return {"images": counts.get(self.split, _ALL - sum(counts.values()))}

    def load_records(self) -> list[dict]:
        """Reads the pictures of the split."""
        path = Path(self.data_root) / "annotations.jsonl"

        def parse(index: int, line: str) -> dict:
            where = f"{path}, line {index + 1}"
            row = parse_object(line, where)
            record = {
                "img_path": str(Path(self.data_root) / "images" / field(row, "image", str, where)),
                "image_id": index,
                "questions": [check_text(field(row, "name", str, where), f"{where}: the name")],
                "question_ids": [index],
                "codepoints": field(row, "codepoints", str, where),
            }
            return record if self.test_mode else {**record, "targets": [0]}

        rows = list(self.parsed(self.read_lines(path), parse))
        self._check_names(rows, path)
        return self.group(self._choose(rows))

    def _choose(self, rows: list[dict]) -> list[dict]:
        """The split's rows, in the file's order."""
        held_out = self.num_test_images + self.num_val_images
        if min(self.num_test_images, self.num_val_images) < 0 or held_out >= len(rows):
            raise ValueError(
                f"num_test_images={self.num_test_images} and num_val_images={self.num_val_images}: expected fewer than the "
                f"{len(rows)} pictures in all, and none below 0"
            )
        order = sorted(rows, key=lambda row: hashlib.sha256(row["codepoints"].encode()).digest())
        test, val, train = order[: self.num_test_images], order[self.num_test_images : held_out], order[held_out:]
        chosen = {"test": test, "val": val, "train": train}[self.split]
        return sorted(chosen, key=lambda row: row["image_id"])

    def _check_names(self, rows: list[dict], path: Path) -> None:
        for key, texts in (
            ("name", [row["questions"][0] for row in rows]),
            ("codepoints", [row["codepoints"] for row in rows]),
        ):
            repeated = [text for text, count in Counter(text.casefold() for text in texts).items() if count > 1]
            if repeated:
                message = (
                    f"{path} has {len(repeated)} times the same {key} for several pictures, the first is {repeated[0]!r}: "
                    "expected different ones, as no model could tell them apart; write the file again"
                )
                if self.problems is None:
                    raise ValueError(message)
                self.problems.append(message)
