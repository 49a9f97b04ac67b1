import pytest

from smarttrim_mm.evaluation.vqa_normalisation import normalise_answer, vqa_score


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # white space and case
        (" Red\tCar\n", "red car"),
        ("", ""),
        # a mark becomes a space, unless it touches a space anywhere in the text
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),
        ("red/white", "red white"),
        ("red/white, blue", "red white blue"),
        ("yes!", "yes"),
        ('"stop"', "stop"),
        ("{a}(b)[c]", "b c"),
        ("x=y+z\\w_v>u<t@s`r;q?p", "x y z w v u t s r q p"),
        # all marks are removed if a comma stands between two digits
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("1, 000", "1 000"),
        # colons, apostrophes, and what the list of marks leaves out, stay
        ("10:30", "10:30"),
        ("dog's", "dog's"),
        ("#5 & $6", "#5 & $6"),
        # periods go unless a digit follows, whatever stands before them
        ("5.5", "5.5"),
        ("5.", "5"),
        ("p.m.", "pm"),
        (".5", ".5"),
        ("a.5", "a.5"),
        ("." * 32 + "x", "x"),
        ("." * 35 + "x", "...x"),
        # number words, articles
        ("none", "0"),
        ("Zero", "0"),
        ("one two three four five", "1 2 3 4 5"),
        ("six seven eight nine ten", "6 7 8 9 10"),
        ("eleven", "eleven"),
        ("The cat on a mat", "cat on mat"),
        ("an", ""),
        ("thea", "thea"),
        # contractions: with one apostrophe missing; some are unknown, one is the wrong way round
        ("dont", "don't"),
        ("shouldntve", "shouldntve"),
        ("shouldn'tve", "shouldn't've"),
        ("shouldnt've", "shouldn't've"),
        ("'ow'sat", "'ow's'at"),
        ("twas", "'twas"),
        ("Im", "im"),
        ("lets", "lets"),
        ("shes", "shes"),
        ("somebody'd", "somebodyd"),
        ("can't", "can't"),
        # only digits 0 to 9 are digits
        ("١,٢", "١ ٢"),
    ],
)
def test_known_answers(text, expected):
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1), (9, 1), (10, 1)]
)
def test_leave_one_out(matches, expected):
    assert vqa_score("red", ["red"] * matches + ["blue"] * (10 - matches)) == pytest.approx(expected)


def test_people_who_differ_are_normalised_and_so_is_the_prediction():
    assert vqa_score("The T-shirt.", ["t shirt", "a t-shirt"] + ["dress"] * 8) == pytest.approx(0.6)
    assert vqa_score("two", ["2"] * 9 + ["3"]) == 1


def test_people_who_agree_are_taken_to_the_letter():
    assert vqa_score("2", ["two"] * 10) == 0
    assert vqa_score("yes.", ["yes"] * 10) == 0
    assert vqa_score("Yes", ["yes"] * 10) == 0
    assert vqa_score(" one\tway\n", ["one way", "one\nway "] * 5) == 1  # they agree once the white space is gone


def test_they_differ_before_the_normalisation():
    assert vqa_score("two", ["2"] * 5 + ["two"] * 5) == 1


@pytest.mark.parametrize(
    ("answers", "expected"), [(["a b"], 0), (["a b"] * 2, 1 / 3), (["a b"] * 3, 2 / 3), (["b"] + ["c"] * 2, 2 / 9)]
)
def test_other_than_ten_answers(answers, expected):
    assert vqa_score(answers[0], answers) == pytest.approx(expected)


@pytest.mark.parametrize("answers", [[], "yes"])
def test_answers_are_a_list(answers):
    with pytest.raises(ValueError, match=rf"answers={answers!r}: expected the list".replace("[", r"\[")):
        vqa_score("yes", answers)
