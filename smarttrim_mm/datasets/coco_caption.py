"""Captions of COCO in Karpathy's splits, in the files that BLIP and LAVIS train on."""

import re
from pathlib import Path
from typing import Any

from smarttrim_mm.datasets.vision_language import VisionLanguageDataset, check_split, check_text, field
from smarttrim_mm.registry import DATASETS

_PUBLISHED = {
    "train": {"images": 113_287, "questions": 566_747},
    "val": {"images": 5_000, "questions": 5_000},
    "test": {"images": 5_000, "questions": 5_000},
}


@DATASETS.register_module()
class COCOKarpathyCaption(VisionLanguageDataset):
    """COCO's captions in Karpathy's splits (arXiv 1412.2306), to be written by a model.

    A record has ``img_path``, ``image_id`` (COCO's), ``questions`` (the prompt, which a caption continues), ``question_ids``
    and ``gt_answers`` (of each prompt, the people's captions). In training each caption has a prompt of its own, and its id is
    its row in the file; in testing an image has one prompt with all captions, and its id is the image's.

    Args:
        split: 'train', 'val' or 'test'.
        data_root: Folder with ``coco_karpathy_train.json``, ``coco_karpathy_val.json``, ``coco_karpathy_test.json``, and
            ``train2014/`` and ``val2014/`` with COCO's images.
        prompt: What every caption begins with.
        **kwargs: Further arguments of `VisionLanguageDataset`.

    Raises:
        FileNotFoundError: If a file or an image is missing.
        ValueError: If a file's content is not as published, or the prompt or a caption is empty.
    """

    METAINFO = {"dataset_name": "COCO captions"}
    LAYOUT = "coco_karpathy_train.json, coco_karpathy_val.json, coco_karpathy_test.json, and the images in train2014/, val2014/"

    def __init__(self, *, split: str, data_root: str = "data/coco", prompt: str = "a picture of", **kwargs: Any) -> None:
        self.split = check_split(split, _PUBLISHED)
        self.prompt = check_text(prompt, "prompt")
        super().__init__(data_root=data_root, test_mode=kwargs.pop("test_mode", split != "train"), **kwargs)

    def published_counts(self) -> dict[str, int]:
        """The official numbers; a question is a prompt."""
        return _PUBLISHED[self.split]

    def load_records(self) -> list[dict]:
        """Reads the captions of the split."""
        root = Path(self.data_root)
        path = root / f"coco_karpathy_{self.split}.json"
        expected = "expected a list of objects with 'image' and 'caption', as in the file of BLIP's authors; fetch it again"
        rows = self.read_json(path, expected)
        if not isinstance(rows, list) or not rows:
            raise ValueError(f"{path} holds {str(rows)[:60]!r}: {expected}")

        def parse(index: int, row: Any) -> dict:
            where = f"{path}, row {index}"
            name = field(row, "image", str, where)
            image_id = _image_id(name, where)
            if self.split == "train":
                told = field(row, "image_id", str, where)
                if told != f"coco_{image_id}":
                    raise ValueError(f"{where} has image_id={told!r} and the image {name!r}: expected 'coco_{image_id}'")
                captions = [field(row, "caption", str, where)]
            else:
                captions = field(row, "caption", list, where)
                if not captions or not all(isinstance(caption, str) for caption in captions):
                    raise ValueError(f"{where} has caption={captions!r}: expected a list of texts; fetch the file again")
            return {
                "img_path": str(root / name),
                "image_id": image_id,
                "questions": [self.prompt],
                "question_ids": [index if self.split == "train" else image_id],
                "gt_answers": [[check_text(caption, f"{where}: a caption") for caption in captions]],
            }

        return self.group(self.parsed(rows, parse))


def _image_id(name: str, where: str) -> int:
    """COCO's number in the name of an image."""
    match = re.fullmatch(r"(?:.*_)?0*(\d+)", Path(name).stem)
    if match is None:
        raise ValueError(f"{where} has image={name!r}: expected a name such as 'val2014/COCO_val2014_000000522418.jpg'")
    return int(match[1])
