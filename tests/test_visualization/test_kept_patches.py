import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from smarttrim_mm.visualization import kept_patches
from smarttrim_mm.visualization.kept_patches import draw_kept, evenly, greyed, layer_name, question_lines


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
    assert (np.diff(columns) > 20).sum() == 2


def test_a_deep_model_gets_no_wider_than_the_limit(trace, tmp_path, pixels):
    deep = dataclasses.replace(trace, patches={f"image.{i}": trace.patches["image.1"] for i in range(30)})
    at_limit = dataclasses.replace(trace, patches={f"image.{i}": trace.patches["image.1"] for i in range(9)})
    wide = pixels(draw_kept([deep], tmp_path / "deep.png"))
    assert wide.shape == pixels(draw_kept([at_limit], tmp_path / "limit.png")).shape


@pytest.mark.parametrize(
    ("answer", "color", "text"), [("yes", "#1a7f37", ""), ("no", "#b42318", "   (right: no)"), (None, "#333333", "")]
)
def test_an_answer_is_green_only_if_it_is_known_to_be_right(trace, answer, color, text):
    figure = Figure()
    FigureCanvasAgg(figure)
    panel = figure.add_axes((0, 0, 1, 1))
    kept_patches._draw_question(panel, dataclasses.replace(trace, answer=answer))
    assert (panel.texts[0].get_text(), panel.texts[0].get_color()) == (f"answer: yes{text}", color)


@pytest.mark.parametrize("words", [4, 10, 40])
def test_words_do_not_overlap_and_stay_in_their_panel(words):
    figure = Figure(figsize=(3.9, 1.4), dpi=160)
    canvas = FigureCanvasAgg(figure)
    panel = figure.add_axes((0, 0, 1, 1))
    kept = np.arange(words) % 2 == 0
    kept_patches._draw_words(panel, 0.2, 0.5, ["present"] * words, kept)
    renderer = canvas.get_renderer()
    boxes = [text.get_window_extent(renderer).transformed(panel.transAxes.inverted()) for text in panel.texts]
    assert len(boxes) == words or words == 40
    assert all(before.x1 < after.x0 for before, after in pairwise(boxes))
    assert boxes[-1].x1 <= 1.001
    shown = [text for text in panel.texts if text.get_text() == "present"]
    assert len(panel.lines) == len(shown) // 2  # the dropped ones are struck
    assert (panel.texts[-1].get_text() == "\u2026") == (words == 40)


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="traces is empty"):
        draw_kept([], tmp_path / "none.png")
