"""NLVR2: is a sentence true of two photographs?"""

from pathlib import Path
from typing import Any

from smarttrim_mm.datasets.vision_language import VisionLanguageDataset, check_split, check_text, field, parse_object
from smarttrim_mm.registry import DATASETS

_PUBLISHED = {"train": 86_373, "dev": 6_982, "test1": 6_967}
_TARGETS = {"False": 0, "True": 1}


@DATASETS.register_module()
class NLVR2(VisionLanguageDataset):
    """NLVR2 (Suhr et al., arXiv 1811.00491) from its official files, one item a sentence with its two images.

    mmpretrain has a class of this name, which ignores the folders of the training images. The two do not clash: in a config
    of this package's scope ``NLVR2`` is this one, and ``mmpretrain.NLVR2`` the other.

    A record has ``img_paths`` (left, right), ``image_id`` (the number of the pair of images, in the file's order),
    ``questions`` (the sentence), ``question_ids`` (its row in the file), ``identifiers`` and ``targets`` (False 0, True 1).

    Args:
        split: 'train', 'dev' or 'test1'.
        data_root: Folder with ``train.json``, ``dev.json``, ``test1.json`` and, under ``images``, ``train/DIRECTORY/``,
            ``dev/`` and ``test1/`` with ``SPLIT-SET-PAIR-img0.png`` and ``-img1.png``.
        **kwargs: Further arguments of `VisionLanguageDataset`; ``num_images`` is a number of pairs.

    Raises:
        FileNotFoundError: If a file or an image is missing.
        ValueError: If a file's content is not as published, or a sentence is empty.
    """

    METAINFO = {"dataset_name": "NLVR2", "classes": ("False", "True")}
    LAYOUT = "train.json, dev.json, test1.json, and images/train/DIRECTORY/, images/dev/ and images/test1/"

    def __init__(self, *, split: str, data_root: str = "data/nlvr2", **kwargs: Any) -> None:
        self.split = check_split(split, _PUBLISHED)
        super().__init__(
            data_root=data_root,
            group_questions=False,
            test_mode=kwargs.pop("test_mode", split != "train"),
            **kwargs,
        )

    def published_counts(self) -> dict[str, int]:
        """The official number of sentences."""
        return {"questions": _PUBLISHED[self.split]}

    def load_records(self) -> list[dict]:
        """Reads the sentences of the split."""
        path = Path(self.data_root) / f"{self.split}.json"
        pairs: dict[str, int] = {}

        def parse(index: int, line: str) -> dict:
            where = f"{path}, line {index + 1}"
            row = parse_object(line, where)
            identifier = field(row, "identifier", str, where)
            split, *rest = identifier.split("-")
            if split != self.split or len(rest) != 3:
                raise ValueError(
                    f"{where} has identifier={identifier!r}: expected '{self.split}-SET-PAIR-SENTENCE'; is this the file of "
                    "another split? Fetch it again"
                )
            label = field(row, "label", str, where)
            if label not in _TARGETS:
                raise ValueError(f"{where} has label={label!r}: expected 'True' or 'False'; correct the row")
            folder = Path(self.data_root) / "images" / split
            if split == "train":
                folder /= str(field(row, "directory", (int, str), where))
            pair = identifier.rpartition("-")[0]
            return {
                "img_paths": [str(folder / f"{pair}-img{side}.png") for side in (0, 1)],
                "image_id": pairs.setdefault(pair, len(pairs)),
                "questions": [check_text(field(row, "sentence", str, where), f"{where}: the sentence")],
                "question_ids": [index],
                "identifiers": [identifier],
                "targets": [_TARGETS[label]],
            }

        return self.group(self.parsed(self.read_lines(path), parse))
