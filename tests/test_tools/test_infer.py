"""``tools/infer.py``: its answers are those of ``tools/test.py``, and its arguments say which text is asked of which image."""

import json
from pathlib import Path

import easy_vqa
import pytest
import torch
from mmengine.config import Config

from smarttrim_mm import cli
from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.engine.calibration import save_calibrated
from smarttrim_mm.engine.infer import main, read_rows
from smarttrim_mm.testing import excite

IMAGES = Path(easy_vqa.__file__).parent / "data" / "test" / "images"


@pytest.fixture(scope="module")
def files(small_config, tmp_path_factory) -> list[str]:
    """A config and a checkpoint as a calibration writes it, which cuts about half."""
    folder = tmp_path_factory.mktemp("model")
    config = small_config()
    model = build_model(read_config(config))
    excite(model)
    model.policy.set_knob(0.97)
    torch.save({"state_dict": model.state_dict(), "meta": {}}, folder / "trained.pth")
    save_calibrated(str(folder / "calibrated.pth"), model, str(folder / "trained.pth"), {"target": 2.0})
    return [config, str(folder / "calibrated.pth")]


def test_its_answers_are_those_of_a_test(files, tmp_path, capsys):
    cli.test([*files, "--work-dir", str(tmp_path / "work"), "--out", str(tmp_path / "tested.json")])
    tested = json.loads((tmp_path / "tested.json").read_text())["predictions"]
    rows: dict[int, list[str]] = {}
    for answer in tested:
        rows.setdefault(answer["image_id"], []).append(answer["question"])
    lines = [{"image": str(IMAGES / f"{image}.png"), "text": questions} for image, questions in rows.items()]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    capsys.readouterr()
    out = tmp_path / "out" / "found.json"
    arguments = [*files, "--list", str(tmp_path / "list.jsonl"), "--batch-size", "2", "--out", str(out)]
    results = main([*arguments, "--speedup", "2", "--device", "cpu", "--top", "3"])
    told = json.loads(out.read_text())
    assert told["speedup"] == 2.0 and [told["config"], told["checkpoint"]] == files
    assert len(told["results"]) == len(results) == len(tested) > len(rows) > 2
    for found, answer in zip(told["results"], tested, strict=True):
        assert found["text"] == answer["question"] and found["answer"] == answer["predicted_answer"]
        assert found["score"] == answer["score"] and len(found["scores"]) == 3
        assert found["spent"]["multiply_adds"] == answer["multiply_adds"]
    assert len({found["spent"]["multiply_adds"] for found in told["results"]}) > 1
    printed = capsys.readouterr().out
    assert "answering" in printed and f"{len(rows)}/{len(rows)}" in printed
    first = results[0]
    assert f"{first.images[0]}  {first.text!r}\n  {first.answer} {first.score:.3f} | " in printed
    assert f" M  {first.spent.speedup:.2f}x\n  tokens  text " in printed and "\n  heads   image.self " in printed


def test_images_and_texts_of_the_command_line(files, tmp_path, capsys):
    for name in ("b.png", "a.PNG", "notes.txt"):
        (tmp_path / name).write_bytes((IMAGES / "0.png").read_bytes())
    one, other = str(IMAGES / "0.png"), str(IMAGES / "1.png")

    def asked(*arguments):
        return [(Path(result.images[0]).name, result.text) for result in main([*files, *arguments, "--quiet"])]

    assert asked("--image", one, "--text", "is it red?", "what shape?") == [("0.png", "is it red?"), ("0.png", "what shape?")]
    assert asked("--image", one, other, "--text", "red?", "blue?") == [("0.png", "red?"), ("1.png", "blue?")]
    assert asked("--image", str(tmp_path), other, "--text", "red?") == [(name, "red?") for name in ("a.PNG", "b.png", "1.png")]
    assert "multiply-adds" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="texts has 2 entries for 3 images"):
        asked("--image", one, other, one, "--text", "red?", "blue?")


def test_what_is_wrong_is_told_before_the_model_is_built(files, tmp_path, capsys):
    def refused(error, match, *arguments):
        with pytest.raises(error, match=match):
            main([files[0], "never-read.pth", *arguments])

    one = str(IMAGES / "0.png")
    refused(ValueError, "--top is 0", "--image", one, "--top", "0")
    refused(ValueError, "folder without images", "--image", str(tmp_path))
    refused(FileNotFoundError, r"--list 'no\.jsonl'", "--list", "no.jsonl")
    path = tmp_path / "list.jsonl"
    refused(ValueError, "--text is given with --list", "--list", str(path), "--text", "a?")
    wrong = {
        "": r"is empty",
        "{": r"line 1 is no JSON",
        '{"image": "a.png"}\n\n{"picture": "b.png"}': r"line 3 is .*picture.*expected an object",
        '{"image": []}': r"line 1 is",
        '{"image": "a.png", "text": "a?"}\n{"image": "b.png"}': r"line 2 has no text, and others have one",
        '\n{"image": "a.png", "text": 5}': r"line 2 has the text 5; expected words",
        '{"image": "a.png", "text": ["a?", ""]}': r"line 1 has the text \['a\?', ''\]",
        '{"image": "a.png", "text": []}': r"line 1 has the text \[\]",
        '{"image": ["http://a/b.png", "c.png"]}': r"'http://a/b.png': nothing is downloaded",
    }
    for content, match in wrong.items():
        path.write_text(content)
        refused(ValueError, match, "--list", str(path))
    path.write_bytes('{"image": "a.png", "text": "é?"}'.encode("latin1"))
    refused(ValueError, r"list\.jsonl' is no text in UTF-8", "--list", str(path))
    refused(ValueError, r"--out is .*, a folder; expected the file to write", "--image", one, "--out", str(tmp_path))
    refused(
        ValueError, r"--out is .*list\.jsonl' is a file; expected a folder", "--image", one, "--out", str(path / "a" / "b.json")
    )
    refused(ValueError, r"--vis is .*list\.jsonl' is a file; expected a folder", "--image", one, "--vis", str(path))
    with pytest.raises(ValueError, match=r"speedup is 3, but .*calibrated\.pth was calibrated to 2: expected"):
        main([*files, "--image", one, "--text", "a?", "--speedup", "3"])
    with pytest.raises(SystemExit):
        main(files)
    assert "one of the arguments --image --list is required" in capsys.readouterr().err


def test_paths_of_a_list_start_at_its_folder(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text('{"image": ["left.png", "/right.png"], "text": "two cats"}\n')
    assert read_rows(str(path)) == ([[str(tmp_path / "left.png"), "/right.png"]], ["two cats"])
    path.write_text('{"image": "a.png", "text": null}\n{"image": "b.png"}\n')
    assert read_rows(str(path)) == ([str(tmp_path / "a.png"), str(tmp_path / "b.png")], None)


def test_two_images_a_text(files, tmp_path):
    """A model of NLVR2 takes the images two by two."""
    cfg = Config.fromfile(files[0])
    cfg.model.backbone.update(images_per_text=2, num_classes=2, head_name="nlvr2_classifier")
    cfg.model.policy = {"type": "Dense"}
    cfg.test_dataloader.dataset = {
        "type": "NLVR2",
        "split": "dev",
        "pipeline": [{"type": "LoadImages"}, *cfg.test_dataloader.dataset.pipeline[1:]],
    }
    config, checkpoint = tmp_path / "two.py", tmp_path / "two.pth"
    cfg.dump(config)
    model = build_model(read_config(str(config)))
    excite(model)
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    images = [str(IMAGES / f"{number}.png") for number in range(4)]
    arguments = [str(config), str(checkpoint), "--image", *images]
    results = main([*arguments, "--text", "both are red", "one is blue", "--vis", str(tmp_path / "kept")])
    assert [result.images for result in results] == [tuple(images[:2]), tuple(images[2:])]
    assert all(result.answer in ("False", "True") and result.spent.tokens["image.0/image"] == (65, 65) for result in results)
    assert len(list((tmp_path / "kept").iterdir())) == 2
    with pytest.raises(ValueError, match="--image gives 3 images, but this model's texts are about 2 each"):
        main([*arguments[:-1], "--text", "both are red"])
