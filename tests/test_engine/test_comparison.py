from math import sqrt

import pytest

from smarttrim_mm.engine.comparison import compare


def predictions(right: list[list[bool]]) -> list[dict]:
    """One list an image."""
    return [
        {"image_id": image, "question_id": 10 * image + i, "predicted_answer": "yes" if value else "no", "answer": "yes"}
        for image, values in enumerate(right)
        for i, value in enumerate(values)
    ]


def test_difference_and_its_error_follow_from_the_pairs():
    first = predictions([[True], [True], [True], [False]])
    second = predictions([[True], [False], [False], [False]])
    found = compare(first, second)
    # differences 0, 1, 1, 0 of four images: mean 0.5, variance 1/3
    assert found.difference == 0.5
    assert found.standard_error == pytest.approx(sqrt(1 / 3 / 4))
    assert (found.questions, found.images) == (4, 4)
    assert found.ties  # 0.5 < 2 * 0.289


def test_questions_about_one_image_are_one_draw():
    alone = compare(predictions([[True]] * 4 + [[False]] * 12), predictions([[False]] * 16))
    together = compare(predictions([[True] * 4, *[[False] * 4] * 3]), predictions([[False] * 4] * 4))
    assert alone.difference == together.difference == 0.25
    assert together.standard_error == pytest.approx(sqrt(4 / 3 * (3**2 + 3 * 1**2)) / 16)
    assert together.standard_error > 1.9 * alone.standard_error


def test_equal_models_tie_and_a_sure_difference_does_not():
    half = predictions([[True], [False]] * 50)
    assert compare(half, half).ties
    assert compare(half, half).standard_error == 0
    assert not compare(predictions([[True]] * 100), half).ties


def test_order_does_not_matter():
    first, second = predictions([[True, False], [False, True]]), predictions([[False, False], [True, True]])
    assert compare(first, second[::-1]) == compare(first, second)
    assert compare(second, first).difference == -compare(first, second).difference


def test_other_questions_are_an_error():
    with pytest.raises(ValueError, match="1 questions were asked of one model only, the first is question_id 11 of image 1"):
        compare(predictions([[True], [True, True]]), predictions([[True], [True]]))
    with pytest.raises(ValueError, match="no predictions to compare"):
        compare([], [])
