"""Writes small data sets in the formats of the official files, with images of a few pixels."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# of an image: its questions, each with ten answers
VQA_TRAIN = {
    9: [("What color is the cat?", ["red"] * 3 + ["Blue"] * 2 + ["the red"] + ["teal"] * 4), ("Is it red?", ["yes"] * 10)],
    25: [("How many cats?", ["two"] * 6 + ["2"] * 4)],
    30: [("What does it say?", ["abracadabra"] * 10)],
}
VQA_VAL = {42: [("Is there a cat?", ["no"] * 9 + ["yes"]), ("What is it worth?", ["sixpence"] * 10)]}
VQA_TEST = {1: ["Is it a dog?", "What color?"], 16: ["How many?"]}
VQA_CLASSES = ["red", "blue", "yes", "no", "2", "green"]
NLVR2_SENTENCES = [("10-0-0", "True"), ("10-0-1", "False"), ("7-2-0", "False")]
# emoji: name and keywords; the last has no picture
EMOJI = {
    "#\ufe0f\u20e3": ("keycap: #", ["keycap"]),
    "\u231a": ("watch", ["clock", "time"]),
    "\U0001f44b": ("waving hand", ["bye", "hello"]),
    "\U0001f44b\U0001f3fb": ("waving hand: light skin tone", ["bye", "light skin tone"]),
    "\U0001f44b\U0001f3ff": ("waving hand: dark skin tone", ["bye", "dark skin tone"]),
    "\U0001f17e\ufe0f": ("O button (blood type)", []),
    "\u3297\ufe0f": ("Japanese “congratulations” button", ["ideograph"]),
    "\U0001f415": ("dog", ["pet"]),
}
SNLI_ROWS = [
    ("100", "A man sleeps.", "contradiction"),
    ("200", "A dog runs. ", "entailment"),
    ("100", "A man is outside.", "neutral"),
]


def write_image(path: Path, size: tuple[int, int] = (6, 8), value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), (value, 100, 200), np.uint8))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def edit_json(path: Path, key: str, index: int, **changes: Any) -> None:
    """Changes fields of a row of a JSON file; None removes a field."""
    content = json.loads(path.read_text())
    _change(content[key][index], changes)
    write_json(path, content)


def edit_line(path: Path, index: int, **changes: Any) -> None:
    """Changes fields of a row of a file with an object a line; None removes a field."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    _change(rows[index], changes)
    write_lines(path, rows)


def _change(row: dict, changes: dict) -> None:
    row.update(changes)
    for key, value in changes.items():
        if value is None:
            del row[key]


def write_vqav2(root: Path, classes: Sequence[str] = VQA_CLASSES, train: dict = VQA_TRAIN) -> Path:
    """VQAv2: three images for training (or others), one for validation, two for testing, of which test-dev has the first."""
    write_json(root / "answers.json", list(classes))
    for name, images in (("train2014", train), ("val2014", VQA_VAL)):
        questions, annotations = [], []
        for image_id, pairs in images.items():
            write_image(root / name / f"COCO_{name}_{image_id:012d}.jpg")
            for number, (question, answers) in enumerate(pairs):
                ids = {"image_id": image_id, "question_id": 1000 * image_id + number}
                questions.append({**ids, "question": question})
                rows = [{"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i, answer in enumerate(answers)]
                kind = "yes/no" if question.startswith("Is") else "number" if question.startswith("How") else "other"
                annotations.append(
                    {
                        **ids,
                        "question_type": "what is",
                        "answer_type": kind,
                        "multiple_choice_answer": answers[0],
                        "answers": rows,
                    }
                )
        write_json(root / f"v2_OpenEnded_mscoco_{name}_questions.json", _vqa_file(name, "questions", questions))
        write_json(root / f"v2_mscoco_{name}_annotations.json", _vqa_file(name, "annotations", annotations[::-1]))
    tests = [
        {"image_id": image_id, "question_id": 1000 * image_id + number, "question": question}
        for image_id, questions in VQA_TEST.items()
        for number, question in enumerate(questions)
    ]
    for image_id in VQA_TEST:
        write_image(root / "test2015" / f"COCO_test2015_{image_id:012d}.jpg")
    for name, rows in (("test2015", tests), ("test-dev2015", tests[:2])):
        write_json(root / f"v2_OpenEnded_mscoco_{name}_questions.json", _vqa_file(name, "questions", rows))
    return root


def _vqa_file(subtype: str, key: str, rows: list[dict]) -> dict:
    common = {"info": {"version": "2.0"}, "license": {}, "data_type": "mscoco", "data_subtype": subtype}
    return {**common, "task_type": "Open-Ended", key: rows}


def write_nlvr2(root: Path, sentences: Sequence[tuple[str, str]] = NLVR2_SENTENCES) -> Path:
    """NLVR2: sentences with their labels, the same in each split; by default three, two of them about one pair of images."""
    for split in ("train", "dev", "test1"):
        rows = []
        for number, label in sentences:
            identifier = f"{split}-{number}"
            row = {"sentence": f"There are dogs in {identifier}.", "label": label, "identifier": identifier, "synset": "dog"}
            directory = 40 + len(rows) // 2
            for side in (0, 1):
                folder = root / "images" / split / (str(directory) if split == "train" else "")
                write_image(folder / f"{identifier.rpartition('-')[0]}-img{side}.png", size=(6, 8 + side), value=side)
            rows.append({**row, "directory": directory} if split == "train" else row)
        write_lines(root / f"{split}.json", rows)
    return root


def write_snli_ve(root: Path, rows: Sequence[tuple[str, str, str]] = SNLI_ROWS) -> Path:
    """SNLI-VE: the same rows in each split."""
    for split in ("train", "dev", "test"):
        write_lines(
            root / f"snli_ve_{split}.jsonl",
            (
                {
                    "annotator_labels": [label],
                    "captionID": f"{image_id}.jpg#0",
                    "gold_label": label,
                    "pairID": f"{image_id}.jpg#0r1{label[0]}",
                    "sentence1": "A caption.",
                    "sentence2": sentence,
                    "Flickr30K_ID": image_id,
                }
                for image_id, sentence, label in rows
            ),
        )
    for image_id in {row[0] for row in rows}:
        write_image(root / "flickr30k-images" / f"{image_id}.jpg")
    return root


def write_coco_captions(root: Path) -> Path:
    """COCO's captions: two images with two captions each for training, two with five for validation and two for testing."""
    rows = []
    for number in (9, 25):
        name = f"train2014/COCO_train2014_{number:012d}.jpg"
        write_image(root / name, value=9 * number)
        captions = (f"A Cat is no. {number}!", f"two  dogs; image {number}")
        rows += [{"image": name, "caption": caption, "image_id": f"coco_{number}"} for caption in captions]
    write_json(root / "coco_karpathy_train.json", rows)
    for split, numbers in (("val", (42, 100)), ("test", (7, 184613))):
        names = [f"val2014/COCO_val2014_{number:012d}.jpg" for number in numbers]
        for name in names:
            write_image(root / name, value=50)
        captions = [f"Caption {n} of an image." for n in range(5)]
        write_json(root / f"coco_karpathy_{split}.json", [{"image": name, "caption": captions} for name in names])
    return root


def write_karpathy(root: Path, source: str, images: int = 8) -> Path:
    """Flickr30K or COCO: four images of five in train (COCO: three, and one in restval), then val and test in turn."""
    rows = []
    for imgid in range(images):
        split = ("train", "train", "train", "restval" if source == "coco" else "train", ("val", "test")[imgid // 5 % 2])[
            imgid % 5
        ]
        captions = [f"Caption {number} of image {imgid}." for number in range(5)]
        sentences = [
            {"tokens": raw.lower().split(), "raw": raw, "imgid": imgid, "sentid": 5 * imgid + number}
            for number, raw in enumerate(captions)
        ]
        row = {"imgid": imgid, "split": split, "sentences": sentences, "sentids": [one["sentid"] for one in sentences]}
        if source == "coco":
            folder = "train2014" if split == "train" else "val2014"
            row |= {"filepath": folder, "filename": f"COCO_{folder}_{1000 + imgid:012d}.jpg", "cocoid": 1000 + imgid}
            write_image(root / folder / row["filename"], value=23 * imgid % 256)
        else:
            row |= {"filename": f"{1000 + imgid}.jpg"}
            write_image(root / "flickr30k-images" / row["filename"], value=23 * imgid % 256)
        rows.append(row)
    write_json(root / f"dataset_{source}.json", {"images": rows, "dataset": source})
    return root


def write_emoji_sources(root: Path) -> tuple[Path, Path]:
    """Noto's pictures and CLDR's names: folders as in the two repositories, one picture without a name and one name without."""
    noto, cldr = root / "noto-emoji", root / "cldr-json/cldr-json"
    for number, text in enumerate([*[*EMOJI][:-1], "0"]):
        points = "_".join(f"{ord(each):04x}" for each in text if each != "\ufe0f")
        write_emoji(noto / f"png/72/emoji_u{points}.png", value=30 * number)
    for path in (noto / "LICENSE", noto / "README.md", cldr / "cldr-annotations-full/LICENSE"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.name} of {path.parent.name}\n")
    for key, folder in (
        ("annotations", "annotations-full/annotations"),
        ("annotationsDerived", "annotations-derived-full/annotationsDerived"),
    ):
        rows = {
            text: ({"default": keywords} if keywords else {}) | {"tts": [name]}
            for text, (name, keywords) in EMOJI.items()
            if (len(keywords) > 1 or not keywords) == (key == "annotations")
        }
        write_json(cldr / f"cldr-{folder}/en/annotations.json", {key: {"identity": {"language": "en"}, "annotations": rows}})
    return noto, cldr


def write_emoji(path: Path, value: int, size: int = 72) -> None:
    """A transparent picture with a square of one colour in the middle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[size // 4 : -size // 4, size // 4 : -size // 4] = (value, 100, 200, 255)
    assert cv2.imwrite(str(path), pixels)


def write_noto_emoji(root: Path, pictures: int = 40) -> Path:
    """`NotoEmoji`: pictures as the converter writes them, with a tokenizer of their names' words."""
    rows = []
    for number in range(pictures):
        points = f"{0x1F400 + number:04x}"
        name = (
            f"{('red', 'blue', 'old', 'new')[number % 4]} {('dog', 'cat', 'hen', 'cow', 'pig')[number // 4 % 5]}: no. {number}"
        )
        rows.append({"image": f"emoji_u{points}.png", "codepoints": points, "name": name, "keywords": ["animal", "farm"]})
        write_emoji(root / "images" / rows[-1]["image"], value=6 * number)
    write_lines(root / "annotations.jsonl", rows)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ":", *map(str, range(pictures))]
    words += ["red", "blue", "old", "new", "dog", "cat", "hen", "cow", "pig", "no"]
    write_json(root / "tokenizer/config.json", {"model_type": "bert"})
    (root / "tokenizer/vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return root
