import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from smarttrim_mm.visualization.figures import render
from smarttrim_mm.visualization.kept_patches import draw_kept, greyed, kept_figure
from smarttrim_mm.visualization.pair_rows import evenly, layer_name, question_lines, wrap


def test_kept_patches_stay_and_dropped_ones_turn_grey(trace):
    picture = greyed(trace.pixels, trace.patches["image.1"])
    assert (picture[8:24, 8:24] == trace.pixels[8:24, 8:24]).all()
    border = picture[:8]
    assert (border == border[..., :1]).all()  # no colour left
    assert border.std() == 0


def test_equal_lines_of_a_question_are_one(trace):
    lines = question_lines(trace.kept_words)
    assert [name for name, _ in lines] == ["text 0-1", "fusion 0"]
    assert lines[1][1].tolist() == [True, False, True, False]


def test_stages_are_not_joined():
    same = np.array([True])
    assert [name for name, _ in question_lines({"text.11": same, "fusion.0": same})] == ["text 11", "fusion 0"]


def test_a_deep_question_is_thinned_evenly():
    words = {f"text.{i}": np.arange(12) < 12 - i for i in range(12)}
    assert [name for name, _ in question_lines(words, limit=4)] == ["text 0", "text 4", "text 7", "text 11"]


@pytest.mark.parametrize(("count", "limit", "expected"), [(3, 5, [0, 1, 2]), (18, 4, [0, 6, 11, 17]), (9, 9, list(range(9)))])
def test_evenly_keeps_the_ends(count, limit, expected):
    assert evenly(list(range(count)), limit) == expected


def test_layer_names_are_words():
    assert layer_name("image.3") == "image 3"


def test_picture_shows_rows_and_columns(trace, tmp_path, pixels):
    one = pixels(draw_kept([trace], tmp_path / "new" / "one.png", "a title"))
    three = pixels(draw_kept([trace] * 3, tmp_path / "three.png"))
    assert three.shape[0] > 2 * one.shape[0]
    assert three.shape[1] == one.shape[1]
    red = (one == (200, 30, 30)).all(-1)
    # the whole image twice (input, image 0) and a quarter of it once (image 1), less the lines between patches
    columns = red.any(0).nonzero()[0]
    assert (np.diff(columns) > 10).sum() == 2


def test_a_deep_model_gets_no_wider_than_the_limit(trace, tmp_path, pixels):
    deep = dataclasses.replace(trace, patches={f"image.{i}": trace.patches["image.1"] for i in range(30)})
    at_limit = dataclasses.replace(trace, patches={f"image.{i}": trace.patches["image.1"] for i in range(9)})
    wide = pixels(draw_kept([deep], tmp_path / "deep.png"))
    assert wide.shape == pixels(draw_kept([at_limit], tmp_path / "limit.png")).shape


@pytest.mark.parametrize(
    ("answer", "color", "text"), [("yes", "#1a7f37", ""), ("no", "#b42318", " (right: no)"), (None, "#222222", "")]
)
def test_an_answer_is_green_only_if_it_is_known_to_be_right(trace, answer, color, text):
    panel = kept_figure([dataclasses.replace(trace, answer=answer)]).axes[0]
    first = panel.texts[0]
    assert (" ".join(first.get_text().split()), first.get_color()) == (f"answer: yes{text}", color)


@pytest.mark.parametrize("words", [4, 10, 22, 90])
def test_words_do_not_overlap_and_stay_in_their_panel(trace, words):
    kept = np.arange(words) % 2 == 0
    long = dataclasses.replace(trace, words=("present",) * words, kept_words={"text.0": kept})
    figure = kept_figure([long])
    render(figure)
    panel = figure.axes[0]
    shown = [text for text in panel.texts if text.get_text() == "present"]
    boxes = [text.get_window_extent().transformed(panel.transData.inverted()) for text in shown]
    lines: dict[float, list] = {}
    for box in boxes:
        lines.setdefault(round((box.y0 + box.y1) / 2, 2), []).append(box)
    for line in lines.values():
        assert all(before.x1 < after.x0 for before, after in pairwise(line))
        assert line[-1].x1 <= 3.9
    assert len(lines) == {4: 1, 10: 2, 22: 4, 90: 4}[words]
    assert (len(shown) == words) == (words < 90)
    assert len(panel.lines) == len(shown) // 2  # the dropped ones are struck
    assert any(text.get_text() == "\u2026" for text in panel.texts) == (words == 90)


def test_lines_break_where_they_must():
    assert wrap([1, 1, 1], 0.5, 2.5, 2) == ([[0, 1], [2]], False)
    assert wrap([5], 0.5, 2.5, 2) == ([[0]], False)  # a word that fits no line has one of its own
    assert wrap([1, 1, 1, 1, 1], 0.5, 2.5, 2) == ([[0, 1], [2]], True)  # room for the mark


def test_a_text_with_dollars_is_no_formula(trace):
    figure = kept_figure([dataclasses.replace(trace, words=("$x$",) * 4, predicted="$\\bad$")])
    assert render(figure).shape[2] == 3


def test_array_and_file_are_the_same_picture(trace, tmp_path, pixels):
    array = render(kept_figure([trace], "a title"))
    assert array.dtype == np.uint8
    assert (array == pixels(draw_kept([trace], tmp_path / "one.png", "a title"))).all()


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="traces is empty"):
        draw_kept([], tmp_path / "none.png")
