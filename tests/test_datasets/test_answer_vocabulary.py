import json

import pytest
from official_files import edit_json, write_vqav2

from smarttrim_mm.datasets.answer_vocabulary import answer_vocabulary, main

ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


def test_frequent_answers_in_the_order_of_their_first_occurrence():
    answers = ["Yes", "the cat", "no", "cat", "yes", "no", "dog", "A cat"]
    assert answer_vocabulary(answers, min_count=2) == ["yes", "cat", "no"]
    assert answer_vocabulary(answers, min_count=3) == ["cat"]
    assert answer_vocabulary(["yes"] * 9 + ["no"] * 8) == ["yes"]


def test_the_tool_writes_train_then_val(tmp_path, capsys):
    write_vqav2(tmp_path)
    main([str(tmp_path), "--min-count", "1", "--num-classes", "0"])
    # the writer stores annotations in reverse
    assert json.loads((tmp_path / "answers.json").read_text()) == ["abracadabra", "2", "yes", "red", "sixpence", "no"]
    assert "6 answers of 6 questions written to" in capsys.readouterr().out
    main([str(tmp_path), "--min-count", "1", "--num-classes", "6", "--out", str(tmp_path / "other.json")])
    assert len(json.loads((tmp_path / "other.json").read_text())) == 6


def test_another_length_is_not_written(tmp_path):
    write_vqav2(tmp_path)
    before = (tmp_path / "answers.json").read_text()
    with pytest.raises(ValueError, match=r"0 answers occur at least 9 times in .*, expected 3129: .*nothing was written"):
        main([str(tmp_path)])
    assert (tmp_path / "answers.json").read_text() == before


def test_bad_annotations(tmp_path):
    write_vqav2(tmp_path)
    edit_json(tmp_path / ANNOTATIONS, "annotations", 1, multiple_choice_answer=None)
    with pytest.raises(ValueError, match=rf"{ANNOTATIONS}, row 1 has multiple_choice_answer=None in .*of type str"):
        main([str(tmp_path)])
    (tmp_path / ANNOTATIONS).unlink()
    with pytest.raises(FileNotFoundError, match=f"no file {tmp_path}/{ANNOTATIONS}"):
        main([str(tmp_path)])
