"""Writes small data sets in the files that mmpretrain's classes read, where the configs look for them."""

import json
import pickle
from pathlib import Path
from typing import Any

from official_files import write_image, write_json, write_lines

# of an image of COCO: its questions, each with ten answers
TRAIN = {
    9: [("what color?", ["red"] * 6 + ["blue"] * 3 + ["Red"]), ("is it red?", ["yes"] * 10)],
    25: [("is it?", ["no"] * 10)],
}
VAL = {42: [("is it a cat?", ["no"] * 8 + ["yes"] * 2), ("what color?", ["red"] * 2 + ["blue"] * 8)]}
VQA_ANSWERS = ["red", "blue", "yes", "no"]
CAPTIONS = {7: 5, 184613: 5}


def write_vqa(root: Path, name: str = "v2_", annotated: str = "v2_") -> None:
    """VQAv2, or OK-VQA, which has no test split; questions and annotations in the same order, as published."""
    for split, images in (("train2014", TRAIN), ("val2014", VAL)):
        questions: list[dict[str, Any]] = []
        annotations = []
        for image_id, pairs in images.items():
            write_image(root / split / f"COCO_{split}_{image_id:012d}.jpg", value=image_id)
            for number, (question, answers) in enumerate(pairs):
                ids = {"image_id": image_id, "question_id": 1000 * image_id + number}
                questions.append({**ids, "question": question})
                rows = [{"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i, answer in enumerate(answers)]
                kind = {"question_type": "what", "answer_type": "yes/no" if question.startswith("is") else "other"}
                annotations.append({**ids, **kind, "multiple_choice_answer": answers[0], "answers": rows})
        write_json(root / f"annotations/{name}OpenEnded_mscoco_{split}_questions.json", {"questions": questions})
        write_json(root / f"annotations/{annotated}mscoco_{split}_annotations.json", {"annotations": annotations})
    write_image(root / "test2015/COCO_test2015_000000000001.jpg")
    test = [{"image_id": 1, "question_id": 1000 + i, "question": "is it?"} for i in range(2)]
    write_json(root / f"annotations/{name}OpenEnded_mscoco_test-dev2015_questions.json", {"questions": test})


def write_vqav2(data: Path) -> None:
    write_vqa(data / "coco")
    rows = [
        {"question_id": 9000, "question": "what is it?", "answer": "a red clock", "image": "image/9.jpg", "dataset": "vg"},
        {"question_id": 9001, "question": "where is it?", "answer": "wall", "image": "image/9.jpg", "dataset": "vg"},
    ]
    write_image(data / "visual_genome/image/9.jpg")
    write_json(data / "visual_genome/vg_qa.json", rows)
    write_json(data / "vqav2/answers.json", VQA_ANSWERS)


def write_okvqa(data: Path) -> None:
    write_vqa(data / "coco", "okvqa_", "okvqa_")
    write_json(data / "okvqa/answers.json", VQA_ANSWERS)


def write_gqa(data: Path) -> None:
    for split in ("train", "testdev"):
        rows = [
            {"image": "n161313.jpg", "question": "is it overcast?", "answer": "no", "question_id": "05451384"},
            {"image": "n161313.jpg", "question": "what is on the left?", "answer": "cat", "question_id": "05451385"},
            {"image": "2350411.jpg", "question": "is it red?", "answer": "yes", "question_id": "05451386"},
        ]
        write_json(data / f"gqa/annotations/{split}_balanced_questions.json", rows)
    for number, name in enumerate(("n161313.jpg", "2350411.jpg")):
        write_image(data / "gqa/images" / name, value=90 * number)
    write_json(data / "gqa/answers.json", ["no", "yes", "cat"])


def write_vsr(data: Path) -> None:
    for split in ("train", "val", "test"):
        rows = [
            {"image": "train2017/000000372029.jpg", "question": "The dog is on the surfboard.", "answer": True},
            {"image": "train2017/000000372029.jpg", "question": "The dog is left of the cat.", "answer": False},
        ]
        write_json(data / f"coco/annotations/{split}.json", rows)
    write_image(data / "coco/train2017/000000372029.jpg")


def write_ocrvqa(data: Path) -> None:
    rows = {}
    for split, key in ((1, "761183272"), (2, "761183273"), (3, "B00ABC1234")):
        rows[key] = {
            "imageURL": f"http://example.org/{key}.jpg",
            "questions": ["Who wrote this book?", "Is this a games related book?"],
            "answers": ["Sandra Boynton", "No"],
            "title": "Cats",
            "authorName": "Sandra Boynton",
            "genre": "Calendars",
            "split": split,
        }
        write_image(data / f"ocrvqa/images/{key}.jpg")
    write_json(data / "ocrvqa/annotations/dataset.json", rows)
    write_json(data / "ocrvqa/answers.json", ["Sandra Boynton", "No"])


def write_nlvr2(data: Path) -> None:
    for split in ("train", "dev", "test1"):
        rows = [
            {"sentence": f"There are dogs {i}.", "label": label, "identifier": f"{split}-{number}", "directory": 4}
            for i, (number, label) in enumerate((("10-0-0", "True"), ("10-0-1", "False"), ("7-2-0", "False")))
        ]
        write_lines(data / f"nlvr2/{split}.json", rows)
        for pair in ("10-0", "7-2"):
            for side in (0, 1):
                write_image(data / f"nlvr2/{split}/{split}-{pair}-img{side}.png", size=(6, 8 + side), value=90 * side)


def write_flickr30k(data: Path) -> None:
    rows = []
    for imgid in range(9):
        sentences = [{"raw": f"Caption {i} of image {imgid}.", "imgid": imgid, "sentid": 5 * imgid + i} for i in range(5)]
        split = ("train", "val", "test")[imgid % 3]
        rows.append({"imgid": imgid, "split": split, "sentences": sentences, "filename": f"{1000 + imgid}.jpg"})
        write_image(data / f"flickr30k/images/{1000 + imgid}.jpg", value=25 * imgid)
    write_json(data / "flickr30k/annotations/dataset_flickr30k.json", {"images": rows})
    for split in ("val", "test"):
        write_references(
            data / f"flickr30k_{split}_gt.json",
            {row["imgid"]: [one["raw"] for one in row["sentences"]] for row in rows if row["split"] == split},
        )


def write_coco_retrieval(data: Path) -> None:
    for split, first in (("train", 9), ("val", 109), ("test", 209)):
        images, annotations = [], []
        for number in range(first, first + 3):
            folder = "train2014" if split == "train" else "val2014"
            name = f"COCO_{folder}_{number:012d}.jpg"
            write_image(data / "coco" / folder / name, value=number)
            images.append({"id": number, "file_name": name, "coco_url": f"http://images.cocodataset.org/{folder}/{name}"})
            for i in range(5):
                annotations.append({"image_id": number, "id": 10 * number + i, "caption": f"Caption {i} of image {number}."})
        path = data / f"coco/annotations/caption_karpathy_{split}2014.json"
        write_json(path, {"images": images, "annotations": annotations})


def write_coco_caption(data: Path) -> None:
    for split in ("train", "val", "test"):
        rows: list[dict[str, Any]] = []
        for number, count in CAPTIONS.items():
            name = f"val2014/COCO_val2014_{number:012d}.jpg"
            write_image(data / "coco" / name, value=number % 250)
            captions = [f"Caption {i} of a cat {number}!" for i in range(count)]
            one = {"image": name, "image_id": f"coco_{number}"}
            rows += (
                [{**one, "caption": text} for text in captions] if split == "train" else [{"image": name, "caption": captions}]
            )
        write_json(data / f"coco/annotations/coco_karpathy_{split}.json", rows)


def write_references(path: Path, captions: dict[int, list[str]]) -> None:
    """COCO's format of references."""
    rows = [
        {"image_id": image, "id": 100 * image + i, "caption": c} for image, each in captions.items() for i, c in enumerate(each)
    ]
    write_json(path, {"images": [{"id": image} for image in captions], "annotations": rows})


def write_nocaps(data: Path) -> None:
    images = [{"id": number, "file_name": f"{number:016x}.jpg"} for number in (0, 1)]
    rows = [
        {"id": 10 * image["id"] + i, "image_id": image["id"], "caption": f"caption {i}"} for image in images for i in range(3)
    ]
    for image in images:
        write_image(data / "nocaps/images" / image["file_name"], value=90 * image["id"])
    write_json(data / "nocaps/annotations/nocaps_val_4500_captions.json", {"images": images, "annotations": rows})


def write_refcoco(data: Path) -> None:
    """Two images of 8 x 16 pixels with a box each."""
    images, annotations, references = [], [], []
    for number, split in ((9, "train"), (25, "val"), (30, "testA")):
        name = f"COCO_train2014_{number:012d}.jpg"
        write_image(data / "coco/train2014" / name, size=(8, 16), value=number)
        images.append({"id": number, "file_name": name, "height": 8, "width": 16})
        annotations.append({"id": 100 + number, "image_id": number, "bbox": [3.0, 1.0, 9.0, 4.0], "category_id": 1})
        sentences = [{"sent": "the dog"}, {"sent": "the left dog"}]
        references.append({"ann_id": 100 + number, "split": split, "sentences": sentences})
    root = data / "coco/refcoco"
    write_json(root / "instances.json", {"images": images, "annotations": annotations, "categories": [{"id": 1}]})
    (root / "refs(unc).p").write_bytes(pickle.dumps(references))


WRITERS = {
    "vqav2": write_vqav2,
    "okvqa": write_okvqa,
    "gqa": write_gqa,
    "vsr": write_vsr,
    "ocrvqa": write_ocrvqa,
    "nlvr2": write_nlvr2,
    "flickr30k_retrieval": write_flickr30k,
    "coco_retrieval": write_coco_retrieval,
    "coco_caption": write_coco_caption,
    "flickr30k_caption": write_flickr30k,
    "nocaps": write_nocaps,
    "refcoco": write_refcoco,
}


def write_bert(data: Path) -> None:
    """A tokenizer whose words are single letters."""
    letters = [chr(ord("a") + i) for i in range(26)]
    words = ["[PAD]", "[UNK]", *letters, *(f"##{x}" for x in letters), *".,?'!", *map(str, range(10))]
    words += [f"[unused{i}]" for i in range(101 - len(words))] + ["[CLS]", "[SEP]", "[MASK]"]
    bert = data / "bert-base-uncased"
    write_json(bert / "config.json", {"model_type": "bert"})
    (bert / "vocab.txt").write_text("\n".join(words))


def rows_of(path: Path) -> Any:
    return json.loads(path.read_text())
