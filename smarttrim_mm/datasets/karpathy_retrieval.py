"""Image-text retrieval on Flickr30K and COCO, with Karpathy's splits."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smarttrim_mm.datasets.vision_language import VisionLanguageDataset, check_split, check_text, field
from smarttrim_mm.registry import DATASETS

_FLICKR_FOLDER = "flickr30k-images"  # COCO's file names the folder of each image
_PUBLISHED = {
    "flickr30k": {"train": 29_000, "val": 1_014, "test": 1_000},
    "coco": {"train": 113_287, "val": 5_000, "test": 5_000},  # train with restval
}


@DATASETS.register_module()
class KarpathyRetrieval(VisionLanguageDataset):
    """Captions of Flickr30K or COCO in Karpathy's splits (arXiv 1412.2306), one item an image with captions.

    A record has ``img_path``, ``image_id`` (the file's ``imgid``), ``questions`` (captions) and ``question_ids`` (their
    ``sentid``). In training, each time it is drawn, these are one of the image's own captions and then ``false_captions`` of
    as many other images, and ``targets`` is [0], the place of the true one; the draws come from Python's global generator. In
    testing they are all captions of the image.

    Args:
        source: 'flickr30k' or 'coco'.
        split: 'train', 'val' or 'test'.
        data_root: Folder with ``dataset_flickr30k.json`` and ``flickr30k-images/``, or with ``dataset_coco.json``,
            ``train2014/`` and ``val2014/``; None: ``data/`` with the source's name.
        false_captions: False captions of a training item; 0 for models that draw theirs from the batch (LAVIS's retrieval).
        joined: Further splits of the file that 'train' takes in. COCO's 'restval' is no split of Flickr30K; METER adds 'val' on
            Flickr30K.
        **kwargs: Further arguments of `VisionLanguageDataset`.

    Raises:
        FileNotFoundError: If a file or an image is missing.
        ValueError: If the file's content is not as published, a caption is empty, or there are too few images to draw from.
    """

    METAINFO = {"dataset_name": "Karpathy retrieval"}
    LAYOUT = "dataset_flickr30k.json with flickr30k-images/, or dataset_coco.json with train2014/ and val2014/"

    def __init__(
        self,
        *,
        source: str,
        split: str,
        data_root: str | None = None,
        false_captions: int = 15,
        joined: Sequence[str] = ("restval",),
        **kwargs: Any,
    ) -> None:
        if source not in _PUBLISHED:
            raise ValueError(f"source={source!r}: expected one of {', '.join(map(repr, _PUBLISHED))}")
        if false_captions < 0:
            raise ValueError(f"false_captions={false_captions}: expected at least 0")
        self.source = source
        self.split = check_split(split, _PUBLISHED[source])
        self.false_captions = false_captions
        self.joined = tuple(joined) if split == "train" else ()
        super().__init__(data_root=data_root or f"data/{source}", test_mode=kwargs.pop("test_mode", split != "train"), **kwargs)

    def published_counts(self) -> dict[str, int]:
        """The official number of images, where ``joined`` is its default."""
        if self.split == "train" and self.joined != ("restval",):
            return {}
        return {"images": _PUBLISHED[self.source][self.split]}

    def complete(self, record: dict, idx: int) -> dict:
        """Draws the captions of a training item."""
        if self.test_mode:
            return record
        drawn = [record]
        images = {record["image_id"]}
        while len(drawn) <= self.false_captions:
            other = self.get_data_info(random.randrange(len(self)))
            if other["image_id"] not in images:
                images.add(other["image_id"])
                drawn.append(other)
        picks = [random.randrange(len(one["questions"])) for one in drawn]
        captions = {key: [one[key][i] for one, i in zip(drawn, picks, strict=True)] for key in ("questions", "question_ids")}
        return {**record, **captions, "targets": [0]}

    def load_records(self) -> list[dict]:
        """Reads the captions of the split."""
        root = Path(self.data_root)
        path = root / f"dataset_{self.source}.json"
        splits = {self.split, *self.joined}

        def parse(index: int, row: Any) -> dict | None:
            where = f"{path}, image {index}"
            if field(row, "split", str, where) not in splits:
                return None
            folder = field(row, "filepath", str, where) if self.source == "coco" else _FLICKR_FOLDER
            captions = field(row, "sentences", list, where)
            if not captions:
                raise ValueError(f"{where} has no sentences: expected about five captions; fetch the file again")
            return {
                "img_path": str(root / folder / field(row, "filename", str, where)),
                "image_id": field(row, "imgid", int, where),
                "questions": [check_text(field(one, "raw", str, where), f"{where}: a caption") for one in captions],
                "question_ids": [field(one, "sentid", int, where) for one in captions],
            }

        records = self.group(self.parsed(self.read_list(path, "images"), parse))
        if not self.test_mode and len(records) <= self.false_captions:
            raise ValueError(
                f"false_captions={self.false_captions}: the split {self.split!r} has {len(records)} images, and each false "
                "caption is of another one; ask for fewer false captions or for more images"
            )
        return records
