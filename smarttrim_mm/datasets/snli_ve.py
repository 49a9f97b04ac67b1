"""SNLI-VE: does an image contradict a sentence, entail it, or neither?"""

from pathlib import Path
from typing import Any

from smarttrim_mm.datasets.vision_language import VisionLanguageDataset, check_split, check_text, field, parse_object
from smarttrim_mm.registry import DATASETS

_PUBLISHED = {"train": 529_527, "dev": 17_858, "test": 17_901}
_CLASSES = ("contradiction", "neutral", "entailment")


@DATASETS.register_module()
class SNLIVE(VisionLanguageDataset):
    """SNLI-VE (Xie et al., arXiv 1901.06706) from its official files, one item an image with its sentences.

    A record has ``img_path``, ``image_id`` (Flickr30K's), ``questions`` (the hypotheses, ``sentence2``), ``question_ids``
    (rows in the file) and ``targets`` (contradiction 0, neutral 1, entailment 2). The image is the premise: its caption,
    ``sentence1``, is not read.

    Args:
        split: 'train', 'dev' or 'test'.
        data_root: Folder with ``snli_ve_train.jsonl``, ``snli_ve_dev.jsonl``, ``snli_ve_test.jsonl`` and, under
            ``flickr30k-images``, ``ID.jpg``.
        **kwargs: Further arguments of `VisionLanguageDataset`.

    Raises:
        FileNotFoundError: If a file or an image is missing.
        ValueError: If a file's content is not as published, or a sentence is empty.
    """

    METAINFO = {"dataset_name": "SNLI-VE", "classes": _CLASSES}
    LAYOUT = "snli_ve_train.jsonl, snli_ve_dev.jsonl, snli_ve_test.jsonl, and flickr30k-images/"

    def __init__(self, *, split: str, data_root: str = "data/snli_ve", **kwargs: Any) -> None:
        self.split = check_split(split, _PUBLISHED)
        super().__init__(data_root=data_root, test_mode=kwargs.pop("test_mode", split != "train"), **kwargs)

    def published_counts(self) -> dict[str, int]:
        """The official number of sentences."""
        return {"questions": _PUBLISHED[self.split]}

    def load_records(self) -> list[dict]:
        """Reads the sentences of the split."""
        root = Path(self.data_root)
        path = root / f"snli_ve_{self.split}.jsonl"

        def parse(index: int, line: str) -> dict:
            where = f"{path}, line {index + 1}"
            row = parse_object(line, where)
            image_id = str(field(row, "Flickr30K_ID", (str, int), where))
            if not image_id.isdecimal():
                raise ValueError(
                    f"{where} has Flickr30K_ID={image_id!r}: expected a number such as '4705552913'; correct the row"
                )
            label = field(row, "gold_label", str, where)
            if label not in _CLASSES:
                raise ValueError(f"{where} has gold_label={label!r}: expected one of {_CLASSES}; correct or remove the row")
            return {
                "img_path": str(root / "flickr30k-images" / f"{image_id}.jpg"),
                "image_id": int(image_id),
                "questions": [check_text(field(row, "sentence2", str, where), f"{where}: sentence2").strip()],
                "question_ids": [index],
                "targets": [_CLASSES.index(label)],
            }

        return self.group(self.parsed(self.read_lines(path), parse))
