import dataclasses

import numpy as np
import pytest

from smarttrim_mm.visualization.figures import score_colours
from smarttrim_mm.visualization.head_map import head_maps, head_scores_figure, heads_figure
from smarttrim_mm.visualization.keep_scores import heated, scores_figure
from smarttrim_mm.visualization.traces import TraceScores

HEADS = {
    "image.0/image.self": np.array([True, False]),
    "image.2/image.self": np.array([False, False]),
    "fusion.0/text.cross": np.array([True, True, False]),
}


def test_scores_colour_a_grey_image():
    """Red below the threshold, blue above, pale grey where there is none; 0.6 of the colour, 0.4 of the grey."""
    colours, norm = score_colours(0.5, np.zeros(0))
    pixels = np.full((4, 2, 3), (0, 90, 210), np.uint8)  # its grey is 100
    picture = heated(pixels, np.array([[0.0], [np.nan]]), colours, norm)
    red = 255 * np.array(colours(0.0)[:3])
    assert picture[:2].reshape(-1, 3).tolist() == [(0.4 * 100 + 0.6 * red).round().tolist()] * 4
    assert picture[2:].reshape(-1, 3).tolist() == [[192] * 3] * 4  # 0.12 * 100 + 0.88 * 205
    blue = heated(pixels, np.array([[1.0], [1.0]]), colours, norm)[0, 0]
    assert blue[2] > blue[0] and picture[0, 0, 0] > picture[0, 0, 2]


def test_the_threshold_is_in_the_middle_and_colours_change_fastest_there():
    norm = score_colours(0.2, np.zeros(0))[1]
    shown = [float(norm(score)) for score in (0.0, 0.15, 0.2, 0.4, 1.0)]
    assert shown == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])  # half the root of a quarter of the way
    assert [float(norm.inverse(value)) for value in shown] == pytest.approx([0.0, 0.15, 0.2, 0.4, 1.0])


def test_without_a_threshold_colours_span_the_scores():
    norm = score_colours(None, np.array([3.0, np.nan, 7.0]))[1]
    assert (norm.vmin, norm.vmax) == (3.0, 7.0)


def test_a_picture_of_scores_has_a_panel_a_deciding_layer(trace):
    scores = TraceScores(
        patches={"image.1": np.full((4, 4), 0.25)}, words={"text.0": np.array([0.9, np.nan, 0.2, 1])}, threshold=0.5
    )
    figure = scores_figure([dataclasses.replace(trace, scores=scores)], "why")
    assert [panel.get_title() for panel in figure.axes if panel.get_title()] == ["input", "image 1"]
    assert [panel.get_xlabel() for panel in figure.axes if panel.get_xlabel()] == ["0.25 to 0.25"]
    struck = [text.get_text() for text in figure.axes[0].texts if text.get_color() == "#9a9a9a"]
    assert struck == ["it"]


def test_heads_are_sorted_by_attention():
    first, second = head_maps(HEADS)
    assert (first.stage, first.attention, first.layers) == ("image", "image.self", (0, 2))
    assert first.values.tolist() == [[1, 0], [0, 0]]
    assert (second.attention, second.values.tolist()) == ("text.cross", [[1], [1], [0]])


def test_a_picture_of_heads_has_a_row_an_input_and_one_for_all(trace):
    own = dataclasses.replace(trace, heads=HEADS)
    shares = {key: np.full(len(on), 0.5) for key, on in HEADS.items()}
    figure = heads_figure([own, own], shares, 1200)
    titles = [panel.get_title() for panel in figure.axes if panel.get_title()]
    assert titles == ["image\nself", "fusion\ntext cross"]
    maps = [panel.images[0].get_array() for panel in figure.axes if panel.images and panel.get_yticks().size]
    assert maps[0].tolist() == [[0.5, 0.5]] * 2 and maps[2].tolist() == [[1, 0], [0, 0]]
    assert len(maps) == 6
    assert "over 1,200 inputs" in figure.texts[0].get_text() and "3 of 7" in figure.texts[1].get_text()


def test_what_a_policy_does_not_say_is_not_drawn(trace):
    with pytest.raises(ValueError, match=r"traces hold no scores of patches or words.*Policy\.scores"):
        scores_figure([trace])
    with pytest.raises(ValueError, match="no heads to draw: the policy decides on no head"):
        heads_figure([trace])
    with pytest.raises(ValueError, match=r"no heads to draw: the policy has no scores of heads"):
        head_scores_figure([trace])
